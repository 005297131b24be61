// Which instruction set's kernels run on this machine.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace limelight {

// The table of the instruction set in use: the best one that this machine has, or the one that the environment variable
// LIMELIGHT_ISA names. Chosen by the first call that succeeds. Throws std::runtime_error where the variable names one
// that cannot run here.
const Kernels& kernels();

// The name of the instruction set in use. Throws as kernels() does.
const char* isa();

// The instruction sets that were compiled in, fastest first.
std::vector<std::string> compiled();

// Those of them that this machine can run.
std::vector<std::string> available();

}  // namespace limelight
