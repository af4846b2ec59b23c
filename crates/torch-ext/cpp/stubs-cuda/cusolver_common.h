// Named by libtorch's headers, not used here.
#pragma once
typedef int cusolverStatus_t;
