// A `libc10d_nccl.so` for the stand-in's devices: the collectives that crates/torch-ext uses, by Gloo on the host.

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "guarded.hpp"
#include "tensors.hpp"

namespace {

class OnDevices final : public c10d::Backend {
 public:
  OnDevices(c10::intrusive_ptr<c10d::Backend> gloo, int rank, int world) : Backend(rank, world), gloo_(std::move(gloo)) {}

  const std::string getBackendName() const override {
    return "nccl";
  }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    return run(tensors, [&](std::vector<at::Tensor>& on_cpu) { return gloo_->allreduce(on_cpu, options); });
  }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    return run(tensors, [&](std::vector<at::Tensor>& on_cpu) { return gloo_->broadcast(on_cpu, options); });
  }

  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& out, at::Tensor& in, const c10d::AllgatherOptions& options) override {
    std::vector<at::Tensor> both{out, in};
    return run(both, [&](std::vector<at::Tensor>& on_cpu) { return gloo_->_allgather_base(on_cpu[0], on_cpu[1], options); });
  }

 private:
  template <typename F>
  c10::intrusive_ptr<c10d::Work> run(const std::vector<at::Tensor>& tensors, F&& collective) {
    standin::Opened opened;
    std::vector<at::Tensor> on_cpu;
    for (const at::Tensor& tensor : tensors) {
      TORCH_CHECK(tensor.is_cuda(), "NCCL takes tensors of devices, got one of ", tensor.device().str());
      opened.add(tensor);
      on_cpu.push_back(standin::view_on_cpu(tensor));
    }
    auto work = collective(on_cpu);
    // The memory closes at the end of this call.
    work->wait();
    return work;
  }

  c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace

// As in crates/torch-ext/cpp/nccl.cpp.
extern "C" char* tx_nccl(void* store, int rank, int world, int, void* out) noexcept {
  return guarded([&] {
    const auto& meeting = *static_cast<c10::intrusive_ptr<c10d::Store>*>(store);
    auto options = c10d::ProcessGroupGloo::Options::create_default(meeting->getTimeout());
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", meeting);
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, world, options);
    *static_cast<c10::intrusive_ptr<c10d::Backend>*>(out) = c10::make_intrusive<OnDevices>(gloo, rank, world);
  });
}
