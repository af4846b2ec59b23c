// Named by libtorch's headers, not used here.
#pragma once
typedef struct cusolverDnContext* cusolverDnHandle_t;
