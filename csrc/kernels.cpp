// The kernels of one instruction set: this file is compiled once for each, with its flags and -DLIMELIGHT_ISA=name.
#include "kernels.h"

#include "additive_backward.h"
#include "additive_forward.h"
#include "dot_backward.h"
#include "dot_forward.h"
#include "peak.h"
#include "rows.h"
#include "strongest_rows.h"

#define LIMELIGHT_TEXT_(name) #name
#define LIMELIGHT_TEXT(name) LIMELIGHT_TEXT_(name)

namespace limelight::LIMELIGHT_ISA {

const Kernels& kernels() {
  static const Kernels table{LIMELIGHT_TEXT(LIMELIGHT_ISA),
                             dot_forward,
                             dot_backward,
                             additive_forward,
                             additive_backward,
                             pack_weight,
                             strongest_rows,
                             cross_entropy,
                             activation_dropout,
                             multiply_add_peak};
  return table;
}

}  // namespace limelight::LIMELIGHT_ISA
