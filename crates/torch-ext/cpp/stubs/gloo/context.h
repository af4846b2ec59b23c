// What ProcessGroupGloo.hpp calls of a context. The type lives in libtorch.
#pragma once

#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
