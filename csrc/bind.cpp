// The Python module kdkernels._C: addresses, sizes and strides as integers; no torch header, any torch version.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace py = pybind11;
using kd_cpu::DType;
using kd_cpu::Kernels;
using kd_cpu::Matrix;

namespace {

const Kernels *active = kd_cpu::runnable().front();

// (address, stride in elements, dtype): a matrix of contiguous rows, or address 0 for none.
using MatrixTuple = std::tuple<uintptr_t, int64_t, int>;

Matrix matrix(const MatrixTuple &from) {
  return {reinterpret_cast<void *>(std::get<0>(from)), std::get<1>(from), static_cast<DType>(std::get<2>(from))};
}

template <class T = void> T *pointer(uintptr_t address) { return reinterpret_cast<T *>(address); }

// A large gradient is fresh memory, and faulting it in by 4 KiB costs more than computing it: ask for 2 MiB pages
// inside the buffer. Where the system has none, nothing changes.
void advise_huge_pages(const Matrix &target, int64_t rows) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(target.data);
  const uintptr_t begin = (first + page - 1) / page * page,
                  end = (first + rows * target.stride * kd_cpu::item_bytes(target.dtype)) / page * page;
  if (first && end > begin)
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void divergence(int loss, const MatrixTuple &student, const MatrixTuple &teacher, const MatrixTuple &gradient,
                uintptr_t labels, uintptr_t soft_weight, uintptr_t hard_weight, uintptr_t values, int64_t rows,
                int64_t vocab, double temperature, double soft_scale, double hard_scale, double scalar, uintptr_t table,
                int64_t orders, bool wide, int threads) {
  if (loss < 0 || loss >= active->losses)
    throw std::invalid_argument("no loss has the number " + std::to_string(loss));
  const kd_cpu::Divergence call{matrix(student),
                                matrix(teacher),
                                matrix(gradient),
                                pointer<int64_t>(labels),
                                pointer(soft_weight),
                                pointer(hard_weight),
                                pointer(values),
                                rows,
                                vocab,
                                1.0 / temperature,
                                soft_scale,
                                hard_scale,
                                scalar,
                                pointer(table),
                                orders};
  py::gil_scoped_release released;
  if (call.gradient.data != call.student.data)
    advise_huge_pages(call.gradient, rows);
  kd_cpu::for_rows(active->divergence[2 * loss + wide], call, wide, threads);
}

void softmax(const MatrixTuple &input, const MatrixTuple &output, int64_t rows, int64_t vocab, double temperature,
             bool log, bool wide, int threads) {
  const kd_cpu::Softmax call{matrix(input), {}, matrix(output), rows, vocab, 1.0 / temperature, log};
  py::gil_scoped_release released;
  advise_huge_pages(call.output, rows);
  kd_cpu::for_rows(active->softmax[wide], call, wide, threads);
}

void softmax_backward(const MatrixTuple &upstream, const MatrixTuple &output, const MatrixTuple &gradient, int64_t rows,
                      int64_t vocab, double temperature, bool log, bool wide, int threads) {
  const kd_cpu::Softmax call{matrix(output), matrix(upstream), matrix(gradient), rows, vocab, 1.0 / temperature, log};
  py::gil_scoped_release released;
  advise_huge_pages(call.output, rows);
  kd_cpu::for_rows(active->softmax_backward[wide], call, wide, threads);
}

void scale_rows(const MatrixTuple &gradient, uintptr_t factor, bool per_row, int64_t rows, int64_t vocab, bool wide,
                int threads) {
  const kd_cpu::Scale call{matrix(gradient), pointer(factor), per_row, rows, vocab};
  py::gil_scoped_release released;
  kd_cpu::for_rows(active->scale[wide], call, wide, threads);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels *kernels : kd_cpu::runnable())
    names.push_back(kernels->name);
  return names;
}

std::vector<std::string> losses() {
  return std::vector<std::string>(active->loss_names, active->loss_names + active->losses);
}

} // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() =
      "Compiled kernels of kdkernels; arguments are addresses, so only kdkernels.backends.native calls them.";
  module.def("divergence", &divergence);
  module.def("softmax", &softmax);
  module.def("softmax_backward", &softmax_backward);
  module.def("scale_rows", &scale_rows);
  module.def("losses", &losses, "The names of the losses, in the order of their numbers.");
  module.def("instruction_sets", &instruction_sets, "What this processor runs, fastest first.");
  module.def("instruction_set", [] { return std::string(active->name); });
  module.def("use_instruction_set", [](const std::string &name) { active = &kd_cpu::by_name(name); });
}
