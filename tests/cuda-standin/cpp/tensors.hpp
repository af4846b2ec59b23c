// How a device's tensors are computed with: as tensors of the CPU in the same memory, which is opened for that time.
#pragma once

#include <vector>

#include <ATen/ATen.h>

#include "memory.hpp"

namespace standin {

inline Block* block_of(const at::Tensor& tensor) {
  return static_cast<Block*>(tensor.storage().data_ptr().get_context());
}

class Opened {
 public:
  void add(const at::Tensor& tensor) {
    add(block_of(tensor));
  }
  void add(Block* block) {
    if (!block) return;
    memory().open(block);
    blocks_.push_back(block);
  }
  Opened() = default;
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() {
    for (Block* block : blocks_) memory().close(block);
  }

 private:
  std::vector<Block*> blocks_;
};

// A tensor of the CPU in a device tensor's memory; use it while that memory is `Opened` only.
inline at::Tensor view_on_cpu(const at::Tensor& tensor) {
  const c10::Storage& storage = tensor.storage();
  void* begin = const_cast<void*>(storage.data());
  // Resizable, so that operations with `out` can give the view another size; what they wrote is then fetched from it.
  c10::Storage aliased(
      c10::Storage::use_byte_size_t(), storage.nbytes(), c10::DataPtr(begin, c10::kCPU), c10::GetAllocator(c10::kCPU), /*resizable=*/true);
  at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(std::move(aliased), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return view;
}

}  // namespace standin
