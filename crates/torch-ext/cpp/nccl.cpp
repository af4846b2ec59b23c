// NCCL for the process groups of distributed.cpp: a shared object of its own, opened where GPUs are, so that the program itself needs
// nothing of CUDA. `cargo xtask nccl` compiles it; the symbols of libtorch's CUDA library stay open until it is loaded.

#include <cstdlib>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "guarded.hpp"

// `store` is a c10::intrusive_ptr<c10d::Store>*, `out` a c10::intrusive_ptr<c10d::Backend>*.
extern "C" char* tx_nccl(void* store, int rank, int world, int device, void* out) noexcept {
  return guarded([&] {
    // A wait is an error when the time is over or another rank is gone, as it is with Gloo. Otherwise a thread of libtorch
    // would end the process.
    setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
    const auto& meeting = *static_cast<c10::intrusive_ptr<c10d::Store>*>(store);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = meeting->getTimeout();
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", meeting);
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(prefixed, rank, world, options);
    group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
    *static_cast<c10::intrusive_ptr<c10d::Backend>*>(out) = group;
  });
}
