// What all C++ files here have in common: errors as text, and the version they are written for.

#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include <c10/util/Exception.h>
#include <torch/headeronly/version.h>

// Objects are allocated here and used by libtorch: headers and library must be of one version.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "torch-ext is written for libtorch 2.11");

namespace {

inline char* copy(const std::string& text) {
  char* out = static_cast<char*>(std::malloc(text.size() + 1));
  if (out) std::memcpy(out, text.c_str(), text.size() + 1);
  return out;
}

template <typename F>
char* guarded(F&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& e) {
    return copy(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return copy(e.what());
  } catch (...) {
    return copy("unknown C++ exception");
  }
}

} // namespace
