// Memory that can be used while an operation runs and faults otherwise; and counts of what was done with it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include <c10/util/Exception.h>

namespace standin {

struct Block {
  void* begin;
  // What was asked for, and the same in whole pages.
  size_t bytes;
  size_t mapped;
  // Operations that use it now.
  int users;
};

class Memory {
 public:
  Block* take(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t mapped = (bytes + page - 1) / page * page;
    const std::lock_guard<std::mutex> lock(mutex_);
    // As CUDA's allocator says it.
    TORCH_CHECK_WITH(OutOfMemoryError, bytes <= capacity_ && used_ <= capacity_ - bytes, "CUDA out of memory. Tried to allocate ", bytes,
                     " bytes. GPU 0 has a total capacity of ", capacity_, " bytes of which ", capacity_ - used_,
                     " bytes is free. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF.");
    void* begin = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) throw std::runtime_error("cuda stand-in: out of memory");
    // New memory of a GPU holds anything; this is not a number in any floating type.
    std::memset(begin, 0xff, bytes);
    mprotect(begin, mapped, PROT_NONE);
    Block* block = new Block{begin, bytes, mapped, 0};
    blocks_[begin] = block;
    used_ += bytes;
    peak_ = used_ > peak_ ? used_ : peak_;
    return block;
  }

  void give_back(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    munmap(block->begin, block->mapped);
    blocks_.erase(block->begin);
    used_ -= block->bytes;
    delete block;
  }

  void open(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block->users++ == 0) mprotect(block->begin, block->mapped, PROT_READ | PROT_WRITE);
  }

  void close(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--block->users == 0) mprotect(block->begin, block->mapped, PROT_NONE);
  }

  // Called by a signal handler: takes no lock, since the process ends anyway.
  bool owns(const void* address) const {
    auto after = blocks_.upper_bound(const_cast<void*>(address));
    if (after == blocks_.begin()) return false;
    const Block* block = std::prev(after)->second;
    return address < static_cast<const char*>(block->begin) + block->mapped;
  }

  size_t peak() const { return peak_; }

 private:
  std::mutex mutex_;
  std::map<void*, Block*> blocks_;
  // CUDA_STANDIN_MEMORY, bytes of all devices together.
  const size_t capacity_ = std::getenv("CUDA_STANDIN_MEMORY") ? std::strtoull(std::getenv("CUDA_STANDIN_MEMORY"), nullptr, 10) : SIZE_MAX;
  size_t used_ = 0;
  size_t peak_ = 0;
};

// Never destroyed: tensors may be given back after every destructor has run.
inline Memory& memory() {
  static Memory* one = new Memory;
  return *one;
}

// Everything that goes between host and devices. On a GPU the host waits for each download and for each single number read.
struct Counts {
  std::atomic<uint64_t> uploads{0}, bytes_up{0}, downloads{0}, bytes_down{0}, scalars_read{0};
};

inline Counts& counts() {
  static Counts* one = new Counts;
  return *one;
}

inline std::mutex& calls_mutex() {
  static std::mutex* one = new std::mutex;
  return *one;
}

inline std::map<std::string, uint64_t>& call_counts() {
  static auto* one = new std::map<std::string, uint64_t>;
  return *one;
}

inline void count_call(const std::string& name) {
  const std::lock_guard<std::mutex> lock(calls_mutex());
  ++call_counts()[name];
}

}  // namespace standin
