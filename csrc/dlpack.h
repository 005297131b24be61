// Tensors of Python as pointers, sizes and strides, by the C interface of DLPack 1.x: no Python runs to ask them. The structs
// are laid out as that standard has them (github.com/dmlc/dlpack, dlpack.h).
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "kernels.h"

namespace limelight {

namespace dlpack {

struct Array {
  void* data;
  int32_t device_type, device_id;
  int32_t axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *from_python, *to_python;
  int (*borrow_from_python)(void* object, Array* to);
  void* stream;
};

constexpr int32_t CPU = 1;
constexpr uint8_t FLOAT = 2, BFLOAT = 4;

}  // namespace dlpack

// A tensor [N, heads, rows, columns] of Python, where it lies and how long its axes are.
struct Borrowed {
  Tensor tensor;
  int64_t size[4];
  Type type;
  bool is(int64_t n, int64_t heads, int64_t rows, int64_t columns) const {
    return size[0] == n && size[1] == heads && size[2] == rows && size[3] == columns;
  }
};

// How tensors of a class are read; nothing can be where the class does not have the interface.
class Reader {
 public:
  explicit Reader(nanobind::handle kind) {
    PyObject* capsule = PyObject_GetAttrString(kind.ptr(), "__dlpack_c_exchange_api__");
    if (capsule) exchange_ = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_XDECREF(capsule);
    PyErr_Clear();
    while (exchange_ && exchange_->major != 1) exchange_ = exchange_->previous;
  }

  // Whether the object is a tensor of four axes on the CPU, of a type that the kernels take, and is now in `to`.
  bool read(nanobind::handle object, Borrowed& to) const {
    dlpack::Array array;
    if (!exchange_ || !exchange_->borrow_from_python) return false;
    if (exchange_->borrow_from_python(object.ptr(), &array) != 0) {
      PyErr_Clear();
      return false;
    }
    if (array.device_type != dlpack::CPU || array.axes != 4 || array.lanes != 1 || !array.strides) return false;
    if (array.code == dlpack::FLOAT && array.bits == 32) to.type = Type::f32;
    else if (array.code == dlpack::BFLOAT && array.bits == 16) to.type = Type::bf16;
    else if (array.code == dlpack::FLOAT && array.bits == 16) to.type = Type::f16;
    else return false;
    to.tensor.data = static_cast<char*>(array.data) + array.byte_offset;
    to.tensor.n = array.strides[0], to.tensor.head = array.strides[1];
    to.tensor.row = array.strides[2], to.tensor.column = array.strides[3];
    for (int axis = 0; axis < 4; axis++) to.size[axis] = array.shape[axis];
    return true;
  }

 private:
  const dlpack::Exchange* exchange_ = nullptr;
};

}  // namespace limelight
