// Findings, with the lines of the source that they are about.
#include <dlfcn.h>
#include <stdio.h>

#include <cinttypes>

#include "state.h"

namespace emulation {

std::string pending_error;

std::string at(const Site& site) { return std::string(" at ") + site.file + ":" + std::to_string(site.line); }

// Where an instruction comes from, as addr2line says: its line, and those that it was inlined into.
std::string at(const void* code) {
  Dl_info info{};
  if (dladdr(code, &info) == 0) return " at an unknown place";
  char command[4096], line[1024];
  const auto offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  snprintf(command, sizeof(command), "addr2line -i -e '%s' 0x%" PRIxPTR, info.dli_fname, offset);
  FILE* said = popen(command, "r");
  std::string text;
  while (said != nullptr && fgets(line, sizeof(line), said) != nullptr) {
    std::string place(line);
    place = place.substr(0, place.find_first_of(" \n"));
    const size_t begin = place.find("csrc/");
    if (begin != std::string::npos && place.find("emulation/") == std::string::npos)
      text += (text.empty() ? " at " : ", called at ") + place.substr(begin);
  }
  if (said != nullptr) pclose(said);
  return text.empty() ? " at an unknown line" : text;
}

void report(const std::string& text) {
  if (pending_error.empty()) pending_error = text;
}

void stop(const std::string& text) {
  const Fiber& self = *running.current;
  report(text + " (block " + std::to_string(self.block->index.x) + ", thread " + std::to_string(self.thread.x) + ")");
  running.failed = true;
  leave_launch();
}

namespace {

// What the data of every handler of undefined behaviour begins with.
struct Place {
  const char* file;
  uint32_t line, column;
};

void undefined(const char* what, const Place* place) {
  const std::string text = std::string(what) + at(Site{place->file, static_cast<int>(place->line)});
  if (running.current != nullptr) stop(text);
  report("in host code: " + text);
}

}  // namespace
}  // namespace emulation

// ---- the handlers that g++ -fsanitize=alignment,bounds,shift,signed-integer-overflow calls ----

#define HANDLER(name, text, ...) \
  extern "C" void __ubsan_handle_##name(emulation::Place* place, __VA_ARGS__) { emulation::undefined(text, place); }
HANDLER(type_mismatch_v1, "misaligned address, or a null pointer", void*)
HANDLER(out_of_bounds, "index past the end of an array", void*)
HANDLER(shift_out_of_bounds, "shift by a negative number or by all bits", void*, void*)
HANDLER(add_overflow, "signed overflow of a sum", void*, void*)
HANDLER(sub_overflow, "signed overflow of a difference", void*, void*)
HANDLER(mul_overflow, "signed overflow of a product", void*, void*)
HANDLER(divrem_overflow, "division by zero, or signed overflow of a quotient", void*, void*)
HANDLER(negate_overflow, "signed overflow of a negation", void*)
