// libtorch's fused AdamW for Rust: one pass over parameters, gradients and moments. (tch binds no operation that writes to lists.)
//
// A tch tensor's pointer is an at::Tensor*.

#include <algorithm>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>

#include "guarded.hpp"

// One update of `params`, `m` and `v`, vectors of one length, by `n` pieces of the gradient, which begin at `begins` and are divided by
// `divisor` first. Returns null, or a message that `tx_free` releases.
extern "C" char* tx_adamw(
    void* params, void* m, void* v, const int64_t* begins, void* const* grads, size_t n, int64_t alignment, double updates, double divisor,
    double lr, double beta1, double beta2, double weight_decay, double eps) noexcept {
  return guarded([&] {
    std::vector<at::Tensor> lists[4];
    const auto add = [&](int64_t begin, const at::Tensor& grad) {
      const int64_t length = grad.numel();
      if (length == 0) return;
      lists[0].push_back(static_cast<at::Tensor*>(params)->narrow(0, begin, length));
      lists[1].push_back(grad);
      lists[2].push_back(static_cast<at::Tensor*>(m)->narrow(0, begin, length));
      lists[3].push_back(static_cast<at::Tensor*>(v)->narrow(0, begin, length));
    };
    for (size_t i = 0; i < n; ++i) {
      const at::Tensor grad = *static_cast<at::Tensor*>(grads[i]);
      const int64_t head = std::min((alignment - begins[i] % alignment) % alignment, grad.numel());
      add(begins[i], grad.narrow(0, 0, head));
      add(begins[i] + head, grad.narrow(0, head, grad.numel() - head));
    }
    const auto scalar = [&](double value) { return at::full({}, value, static_cast<at::Tensor*>(m)->options()); };
    const std::vector<at::Tensor> steps(lists[0].size(), scalar(updates));
    const auto scale = divisor == 1.0 ? std::nullopt : std::optional<at::Tensor>(scalar(divisor));
    at::_fused_adamw_(
        lists[0], lists[1], lists[2], lists[3], {}, steps, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, scale);
  });
}
