// libtorch's process groups for Rust. Every function is noexcept and returns null, or a message that `tx_free` releases.
//
// A tch tensor's pointer is an at::Tensor*.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <dlfcn.h>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "guarded.hpp"

namespace {

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> gloo;
  // Null until `tx_open_nccl`.
  c10::intrusive_ptr<c10d::Backend> nccl;
  int rank;
  int world;

  c10d::Backend& backend_for(const at::Tensor& t) const {
    if (!t.is_cuda()) return *gloo;
    TORCH_CHECK(nccl, "tensors on GPUs need NCCL, which was not opened");
    return *nccl;
  }
};

at::Tensor dense(void* tensor) {
  at::Tensor t = *static_cast<at::Tensor*>(tensor);
  // Backends read numel elements from the data pointer on, whatever the strides.
  TORCH_CHECK(t.is_contiguous(), "a tensor for a collective must be contiguous");
  return t.detach();
}

void finish(const c10::intrusive_ptr<c10d::Work>& work) {
  work->wait();
}

std::vector<uint8_t> bytes(const std::string& text) {
  return std::vector<uint8_t>(text.begin(), text.end());
}

// Gradients in flat buckets, each there from its first gradient to the end of the step, summed over the ranks while the backward
// pass still runs.
class Buckets : public std::enable_shared_from_this<Buckets> {
 public:
  Buckets(const Group* group, std::vector<at::Tensor> params, int64_t bucket_bytes, uint64_t number)
      : group_(group), params_(std::move(params)), number_(number) {
    const int64_t most = std::max<int64_t>(bucket_bytes / static_cast<int64_t>(sizeof(float)), 1);
    for (const auto& p : params_) {
      // One that fills a bucket has it for itself.
      if (buckets_.empty() || buckets_.back().numel >= most || p.numel() >= most) buckets_.emplace_back();
      bucket_of_.push_back(buckets_.size() - 1);
      offsets_.push_back(buckets_.back().numel);
      buckets_.back().numel += p.numel();
      buckets_.back().params += 1;
    }
    seen_.assign(params_.size(), 0);
    arrivals_.assign(params_.size(), 0);
  }

  void hook();

  void begin() {
    std::fill(seen_.begin(), seen_.end(), 0);
    for (auto& b : buckets_) b.flat.reset();
  }

  // The backward pass that follows is the step's last.
  void arm() {
    std::fill(arrivals_.begin(), arrivals_.end(), 0);
    for (auto& b : buckets_) {
      b.arrived = 0;
      b.sent = false;
    }
    completed_.clear();
    works_.clear();
    next_ = 0;
    armed_ = true;
  }

  void arrived(size_t i) {
    const at::Tensor& p = params_[i];
    at::AutoGradMode no_grad(false);
    at::Tensor& grad = p.mutable_grad();
    if (!grad.defined()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    Bucket& b = buckets_[bucket_of_[i]];
    if (seen_[i]) {
      slice(i).add_(grad);
    } else if (b.params == 1 && grad.is_contiguous() && grad.scalar_type() == at::kFloat) {
      // The whole bucket: nothing to copy.
      b.flat = grad.detach().view({-1});
    } else {
      slice(i).copy_(grad);
    }
    seen_[i] = 1;
    // The bucket has it now; the leaf's own copy would only take memory.
    grad.reset();
    if (!armed_) return;
    TORCH_CHECK(!b.sent, "a gradient arrived after its bucket was sent; the steps of a run must have one graph");
    if (arrivals_[i]++ == 0 && ++b.arrived == b.params) {
      completed_.push_back(bucket_of_[i]);
      if (overlap_) launch();
    }
  }

  // The gradients of all parameters, bucket behind bucket; the buckets let go of them.
  std::vector<at::Tensor> finish_step() {
    std::lock_guard<std::mutex> lock(mutex_);
    armed_ = false;
    at::AutoGradMode no_grad(false);
    for (size_t i = 0; i < params_.size(); ++i) {
      if (!seen_[i]) slice(i).zero_();
    }
    if (group_) {
      early_ = static_cast<int64_t>(next_);
      if (order_.empty()) agree();
      for (; next_ < order_.size(); ++next_) reduce(order_[next_]);
      for (const auto& work : works_) finish(work);
      works_.clear();
    }
    std::vector<at::Tensor> out;
    for (auto& b : buckets_) out.push_back(std::move(b.flat));
    return out;
  }

  // Buckets that were on their way before the backward pass ended, in the last step.
  int64_t early() const {
    return early_;
  }

  int64_t count() const {
    return static_cast<int64_t>(buckets_.size());
  }

 private:
  struct Bucket {
    at::Tensor flat;
    int64_t numel = 0;
    size_t params = 0;
    size_t arrived = 0;
    bool sent = false;
  };

  at::Tensor slice(size_t i) {
    const at::Tensor& p = params_[i];
    Bucket& b = buckets_[bucket_of_[i]];
    if (!b.flat.defined()) b.flat = at::empty({b.numel}, p.options().dtype(at::kFloat).requires_grad(false));
    return b.flat.narrow(0, offsets_[i], p.numel()).view(p.sizes());
  }

  // In the agreed order only: ranks that start collectives in different orders would add up different slices.
  void launch() {
    while (next_ < order_.size() && buckets_[order_[next_]].arrived == buckets_[order_[next_]].params) {
      reduce(order_[next_]);
      ++next_;
    }
  }

  void reduce(size_t bucket) {
    Bucket& b = buckets_[bucket];
    b.sent = true;
    std::vector<at::Tensor> list{b.flat};
    works_.push_back(group_->backend_for(b.flat).allreduce(list));
  }

  // The order of the first rank's backward pass holds for all. A parameter whose gradient came in several pieces may
  // change after its bucket was sent, so that there is no sending before the end then.
  void agree() {
    const std::string key = "buckets/" + std::to_string(number_);
    if (group_->rank == 0) {
      const bool once = std::all_of(arrivals_.begin(), arrivals_.end(), [](int n) { return n <= 1; });
      std::string text = once ? "1" : "0";
      std::vector<size_t> order = completed_;
      for (size_t b = 0; b < buckets_.size(); ++b) {
        if (std::find(order.begin(), order.end(), b) == order.end()) order.push_back(b);
      }
      for (size_t b : order) text += " " + std::to_string(b);
      group_->store->set(key, bytes(text));
    }
    const auto raw = group_->store->get(key);
    std::istringstream in(std::string(raw.begin(), raw.end()));
    in >> overlap_;
    for (size_t b; in >> b;) order_.push_back(b);
    TORCH_CHECK(order_.size() == buckets_.size(), "the ranks have different buckets of gradients");
  }

  const Group* group_;
  std::vector<at::Tensor> params_;
  uint64_t number_;
  std::vector<size_t> bucket_of_;
  std::vector<int64_t> offsets_;
  std::vector<Bucket> buckets_;
  std::mutex mutex_;
  std::vector<char> seen_;
  std::vector<int> arrivals_;
  std::vector<size_t> completed_;
  std::vector<size_t> order_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
  size_t next_ = 0;
  int64_t early_ = 0;
  bool armed_ = false;
  bool overlap_ = false;
};

struct Arrival : torch::autograd::PostAccumulateGradHook {
  Arrival(std::weak_ptr<Buckets> buckets, size_t index) : buckets(std::move(buckets)), index(index) {}

  void operator()(const at::Tensor&) override {
    if (auto b = buckets.lock()) b->arrived(index);
  }

  std::weak_ptr<Buckets> buckets;
  size_t index;
};

void Buckets::hook() {
  for (size_t i = 0; i < params_.size(); ++i) {
    torch::autograd::impl::set_post_acc_grad_hooks(params_[i], std::make_unique<Arrival>(weak_from_this(), i));
  }
}

} // namespace

extern "C" {

void tx_free(char* text) {
  std::free(text);
}

char* tx_join(
    const char* host,
    uint16_t port,
    int serve,
    int rank,
    int world,
    const char* prefix,
    int64_t timeout_ms,
    void** out) noexcept {
  return guarded([&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve != 0;
    options.waitWorkers = false;
    options.timeout = timeout;
    c10::intrusive_ptr<c10d::Store> tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    tcp->setTimeout(timeout);
    c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
    auto devices = c10d::ProcessGroupGloo::Options::create_default(timeout);
    c10::intrusive_ptr<c10d::Backend> gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, devices);
    *out = new Group{store, gloo, nullptr, rank, world};
  });
}

// `path`: a file of nccl.cpp, as the loader takes it.
char* tx_open_nccl(void* group, const char* path, int device) noexcept {
  return guarded([&] {
    // Its symbols are what nccl.cpp's object leaves open.
    TORCH_CHECK(dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL), dlerror());
    void* library = dlopen(path, RTLD_NOW);
    TORCH_CHECK(library, dlerror());
    using Open = char* (*)(void*, int, int, int, void*);
    const auto open = reinterpret_cast<Open>(dlsym(library, "tx_nccl"));
    TORCH_CHECK(open, "no function tx_nccl in ", path);
    Group* g = static_cast<Group*>(group);
    if (char* text = open(&g->store, g->rank, g->world, device, &g->nccl)) {
      const std::string message(text);
      std::free(text);
      TORCH_CHECK(false, message);
    }
  });
}

void tx_leave(void* group) noexcept {
  char* text = guarded([&] { delete static_cast<Group*>(group); });
  std::free(text);
}

char* tx_all_reduce(void* group, void* tensor) noexcept {
  return guarded([&] {
    std::vector<at::Tensor> list{dense(tensor)};
    finish(static_cast<Group*>(group)->backend_for(list[0]).allreduce(list));
  });
}

char* tx_broadcast(void* group, void* tensor, int root) noexcept {
  return guarded([&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> list{dense(tensor)};
    finish(static_cast<Group*>(group)->backend_for(list[0]).broadcast(list, options));
  });
}

char* tx_all_gather(void* group, void* whole, void* part) noexcept {
  return guarded([&] {
    at::Tensor out = dense(whole);
    at::Tensor in = dense(part);
    finish(static_cast<Group*>(group)->backend_for(in)._allgather_base(out, in));
  });
}

char* tx_barrier(void* group) noexcept {
  return guarded([&] { finish(static_cast<Group*>(group)->gloo->barrier()); });
}

// Until `key` is set, however long that takes. A meeting place that is gone is an error.
char* tx_wait(void* group, const char* key) noexcept {
  return guarded([&] {
    auto& store = *static_cast<Group*>(group)->store;
    while (!store.check({key})) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  });
}

char* tx_set(void* group, const char* key, const uint8_t* data, size_t n) noexcept {
  return guarded([&] { static_cast<Group*>(group)->store->set(key, std::vector<uint8_t>(data, data + n)); });
}

char* tx_get(void* group, const char* key, uint8_t** data, size_t* n) noexcept {
  return guarded([&] {
    const auto value = static_cast<Group*>(group)->store->get(key);
    *data = static_cast<uint8_t*>(std::malloc(value.size() + 1));
    TORCH_CHECK(*data, "out of memory");
    std::copy(value.begin(), value.end(), *data);
    *n = value.size();
  });
}

char* tx_buckets_new(void* group, void* const* params, size_t n, int64_t bucket_bytes, uint64_t number, void** out) noexcept {
  return guarded([&] {
    std::vector<at::Tensor> list;
    for (size_t i = 0; i < n; ++i) list.push_back(*static_cast<at::Tensor*>(params[i]));
    auto buckets = std::make_shared<Buckets>(static_cast<Group*>(group), std::move(list), bucket_bytes, number);
    buckets->hook();
    *out = new std::shared_ptr<Buckets>(std::move(buckets));
  });
}

void tx_buckets_drop(void* buckets) noexcept {
  delete static_cast<std::shared_ptr<Buckets>*>(buckets);
}

void tx_buckets_begin(void* buckets) noexcept {
  (*static_cast<std::shared_ptr<Buckets>*>(buckets))->begin();
}

void tx_buckets_arm(void* buckets) noexcept {
  (*static_cast<std::shared_ptr<Buckets>*>(buckets))->arm();
}

// `out`: room for a tensor of every bucket, which the caller releases.
char* tx_buckets_finish(void* buckets, void** out) noexcept {
  return guarded([&] {
    for (at::Tensor& t : (*static_cast<std::shared_ptr<Buckets>*>(buckets))->finish_step()) *out++ = new at::Tensor(std::move(t));
  });
}

void tx_buckets_count(void* buckets, int64_t* all, int64_t* early) noexcept {
  const auto& b = *static_cast<std::shared_ptr<Buckets>*>(buckets);
  *all = b->count();
  *early = b->early();
}
}
