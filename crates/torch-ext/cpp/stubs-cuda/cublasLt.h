// Named by libtorch's headers, not used here.
#pragma once
typedef struct cublasLtContext* cublasLtHandle_t;
