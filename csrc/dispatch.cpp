#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

// LIMELIGHT_ISAS is "X(avx2) X(generic)": what was compiled in, fastest first (CMakeLists.txt).
#define X(name)               \
  namespace limelight::name { \
  const Kernels& kernels();   \
  }
LIMELIGHT_ISAS
#undef X

namespace limelight {
namespace {

// These hold for what CMakeLists.txt lets the compiler use in each; they ask the operating system as well, which has to
// save the wider registers.
namespace supports {
[[maybe_unused]] bool generic() { return true; }
[[maybe_unused]] bool neon() { return true; }
#if defined(LIMELIGHT_EMULATE)
bool avx512() { return true; }
bool avx512bf16() { return true; }
#elif defined(__x86_64__)
bool avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
[[maybe_unused]] bool avx512() {
  return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool avx512bf16() {
  return avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi2");
}
#endif
}  // namespace supports

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

#define X(name) {#name, supports::name, name::kernels},
constexpr InstructionSet instruction_sets[] = {LIMELIGHT_ISAS};
#undef X

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const InstructionSet& choose() {
  const char* wanted = std::getenv("LIMELIGHT_ISA");
  const bool free_choice = wanted == nullptr || *wanted == '\0';
  for (const InstructionSet& set : instruction_sets)
    if (set.supported() && (free_choice || std::string(wanted) == set.name)) return set;
  if (free_choice)
    throw std::runtime_error("this machine has none of the instruction sets that were compiled in: " + joined(compiled()));
  throw std::runtime_error(
      "the environment variable LIMELIGHT_ISA must name an instruction set that was compiled in "
      "and that this machine has (" +
      joined(available()) + "), it is '" + wanted + "' (compiled in: " + joined(compiled()) + "); unset it to take the fastest");
}

// A static local: initialised once, whichever thread comes first, and tried again after an exception.
const InstructionSet& chosen() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = chosen().kernels();
  return table;
}

const char* isa() { return chosen().name; }

std::vector<std::string> compiled() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets) names.emplace_back(set.name);
  return names;
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets)
    if (set.supported()) names.emplace_back(set.name);
  return names;
}

}  // namespace limelight
