// libtorch's CUDA library, opened beside the CPU library that the program links, and how its kernels compute.

#include <cstdlib>
#include <dlfcn.h>

#include <ATen/Context.h>

#include "guarded.hpp"

extern "C" {

// Opens the library. Convolutions and matrix products of f32 take TF32 where `tf32`; `deterministic`: only kernels that give the same bits
// each time. Returns null, or a message that `tx_free` releases.
char* tx_open_cuda(int tf32, int deterministic) noexcept {
  return guarded([&] {
    // cuBLAS reads it when it is first used; it is deterministic with workspaces of a fixed size only.
    if (deterministic) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
    TORCH_CHECK(dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL), dlerror());
    at::Context& context = at::globalContext();
    // libtorch's own default is TF32 in convolutions.
    context.setAllowTF32CuDNN(tf32 != 0);
    context.setAllowTF32CuBLAS(tf32 != 0);
    if (!deterministic) return;
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    context.setDeterministicCuDNN(true);
    context.setBenchmarkCuDNN(false);
    // Otherwise every fresh tensor is filled with NaN.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// Whether convolutions of f32 on a GPU take TF32 now.
int tx_allows_tf32() noexcept {
  try {
    return at::globalContext().allowTF32CuDNN() ? 1 : 0;
  } catch (...) {
    return 1;
  }
}
}
