// libtorch's tensors on the CPU, from malloc instead of posix_memalign.

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <mutex>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include "guarded.hpp"

namespace {

// What libtorch's kernels expect of its own allocator.
constexpr size_t kAlignment = 64;
// Stands before what is aligned.
struct Header {
  void* block;
  size_t bytes;
};
constexpr size_t kRoom = kAlignment + sizeof(Header);

Header& header(void* data) {
  return static_cast<Header*>(data)[-1];
}

// The blocks freed last. The next tensor of the same size gets the newest, which is still in the processor's cache; malloc hands out the
// oldest.
class Recent {
 public:
  // A core's share of the last cache.
  static constexpr size_t kBytes = 8 << 20;

  void* take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto at = blocks_.rbegin(); at != blocks_.rend(); ++at) {
      if (header(*at).bytes != bytes) continue;
      void* data = *at;
      blocks_.erase(std::next(at).base());
      held_ -= bytes;
      return data;
    }
    return nullptr;
  }

  void put(void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(data);
    held_ += header(data).bytes;
    while (blocks_.size() > kBlocks || held_ > kBytes) {
      void* oldest = blocks_.front();
      blocks_.pop_front();
      held_ -= header(oldest).bytes;
      std::free(header(oldest).block);
    }
  }

 private:
  // Few enough to look through.
  static constexpr size_t kBlocks = 64;
  std::mutex mutex_;
  std::deque<void*> blocks_;
  size_t held_ = 0;
};

// Never destroyed: tensors in statics are freed after it would be.
Recent& recent() {
  static Recent* blocks = new Recent;
  return *blocks;
}

// Smaller blocks are cheap to get from malloc; larger ones leave nothing in the cache.
bool is_kept(size_t bytes) {
  return bytes >= 4096 && bytes <= Recent::kBytes;
}

void release(void* data) {
  if (!data) return;
  if (is_kept(header(data).bytes)) return recent().put(data);
  std::free(header(data).block);
}

struct Plain final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    void* data = is_kept(bytes) ? recent().take(bytes) : nullptr;
    if (!data) data = fresh(bytes);
    return {data, data, &release, cpu};
  }

  static void* fresh(size_t bytes) {
    void* block = bytes > SIZE_MAX - kRoom ? nullptr : std::malloc(bytes + kRoom);
    TORCH_CHECK_WITH(OutOfMemoryError, block, "out of memory: the CPU has no ", bytes, " bytes for a tensor");
    const auto first = reinterpret_cast<uintptr_t>(block) + sizeof(Header);
    void* data = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    header(data) = {block, bytes};
    return data;
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

extern "C" void tx_use_plain_allocator() noexcept {
  c10::SetCPUAllocator(&plain);
}
