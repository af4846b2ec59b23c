// Named by libtorch's headers, not used here.
#pragma once
typedef struct cublasContext* cublasHandle_t;
typedef int cublasStatus_t;
