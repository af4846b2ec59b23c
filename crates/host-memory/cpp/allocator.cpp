// libtorch's tensors on the CPU, from malloc instead of posix_memalign.

#include <cstdint>
#include <cstdlib>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <torch/headeronly/version.h>

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "this allocator is written for libtorch 2.11");

namespace {

// What libtorch's kernels expect of its own allocator.
constexpr size_t kAlignment = 64;
// The block's own address stands before what is aligned.
constexpr size_t kRoom = kAlignment + sizeof(void*);

void release(void* data) {
  if (data) std::free(static_cast<void**>(data)[-1]);
}

struct Plain final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    void* block = bytes > SIZE_MAX - kRoom ? nullptr : std::malloc(bytes + kRoom);
    TORCH_CHECK_WITH(OutOfMemoryError, block, "out of memory: the CPU has no ", bytes, " bytes for a tensor");
    const auto first = reinterpret_cast<uintptr_t>(block) + sizeof(void*);
    void* data = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    static_cast<void**>(data)[-1] = block;
    return {data, data, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Plain plain;

} // namespace

extern "C" void ld_use_plain_allocator() noexcept {
  c10::SetCPUAllocator(&plain);
}
