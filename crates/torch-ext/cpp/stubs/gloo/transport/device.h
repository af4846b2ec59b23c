// The names that ProcessGroupGloo.hpp mentions by pointer. The types live in libtorch.
#pragma once

namespace gloo::transport {
class Device;
class UnboundBuffer;
} // namespace gloo::transport
