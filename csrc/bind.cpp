// The Python module kdkernels._C: addresses, sizes and strides as integers; no torch header, any torch version.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <sys/mman.h>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cuda/cuda.h"

namespace py = pybind11;
using kd_calls::DType;
using kd_calls::Matrix;
using kd_cpu::Kernels;

namespace {

const Kernels *active = kd_cpu::runnable().front();

// What may be absent is None. Address 0 is not: it is that of a tensor without memory, such as one that was freed.
using Address = std::optional<uintptr_t>;

// (address, stride in elements, dtype): a matrix of contiguous rows.
using MatrixTuple = std::tuple<uintptr_t, int64_t, int>;
using MaybeMatrix = std::optional<MatrixTuple>;

// (address, orders, width)
using TableTuple = std::optional<std::tuple<uintptr_t, int64_t, int64_t>>;

Matrix matrix(const MaybeMatrix &from) {
  if (!from)
    return {};
  const auto [address, stride, dtype] = *from;
  return {reinterpret_cast<void *>(address), stride, static_cast<DType>(dtype)};
}

template <class T = void> T *pointer(Address address) { return reinterpret_cast<T *>(address.value_or(0)); }

template <class... Rest> Address address(const std::tuple<uintptr_t, Rest...> &from) { return std::get<0>(from); }

template <class Tuple> Address address(const std::optional<Tuple> &from) {
  return from ? address(*from) : std::nullopt;
}

// The last line before the kernels: where there are elements, address 0 is not followed.
void present(int64_t rows, int64_t vocab, std::initializer_list<Address> addresses) {
  for (const Address each : addresses)
    if (each && !*each && rows > 0 && vocab > 0)
      throw std::invalid_argument("a tensor that a kernel has to read or write has no memory");
}

// (-1, threads) on the CPU, (device, stream) on a GPU.
using WhereTuple = std::tuple<int, uintptr_t>;

#ifdef KD_CUDA
const kd_cuda::Kernels &cuda_kernels(DType dtype) {
  switch (dtype) {
  case DType::float32:
    return kd_cuda::kFloat32;
  case DType::float16:
    return kd_cuda::kFloat16;
  case DType::bfloat16:
    return kd_cuda::kBFloat16;
  default:
    throw std::invalid_argument("no CUDA kernel takes float64");
  }
}
#endif

// Runs `cpu` over the rows, or hands the call to `cuda`, (table of the dtype, where) -> void, in the build that has it.
template <class Call, class Cuda>
void run(const Call &call, DType dtype, bool wide, const WhereTuple &where,
         void (*cpu)(const Call &, int64_t, int64_t, void *), const Cuda &cuda) {
  py::gil_scoped_release released;
  const int device = std::get<0>(where);
  if (device < 0)
    return kd_cpu::for_rows(cpu, call, wide, static_cast<int>(std::get<1>(where)));
#ifdef KD_CUDA
  cuda(cuda_kernels(dtype), kd_cuda::where(device, reinterpret_cast<void *>(std::get<1>(where))));
#else
  throw std::invalid_argument("this build holds no CUDA kernels");
#endif
}

// A large gradient is fresh memory, and faulting it in by 4 KiB costs more than computing it: ask for 2 MiB pages
// inside the buffer. Where the system has none, nothing changes.
void advise_huge_pages(const Matrix &target, int64_t rows, const WhereTuple &where) {
#ifdef MADV_HUGEPAGE
  if (std::get<0>(where) >= 0)
    return;
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(target.data);
  const uintptr_t begin = (first + page - 1) / page * page,
                  end = (first + rows * target.stride * kd_cpu::item_bytes(target.dtype)) / page * page;
  if (first && end > begin)
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void divergence(int loss, const MatrixTuple &student, const MatrixTuple &teacher, const MaybeMatrix &gradient,
                Address labels, Address soft_weight, Address hard_weight, uintptr_t values, int64_t rows, int64_t vocab,
                double temperature, double soft_scale, double hard_scale, double scalar, const TableTuple &table,
                bool wide, const WhereTuple &where) {
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
                                pointer(address(table)),
                                table ? std::get<1>(*table) : 0,
                                table ? std::get<2>(*table) : 0};
  present(rows, vocab,
          {address(student), address(teacher), address(gradient), labels, soft_weight, hard_weight, values,
           address(table)});
  if (call.gradient.data != call.student.data)
    advise_huge_pages(call.gradient, rows, where);
  run(call, call.student.dtype, wide, where, active->divergence[2 * loss + wide],
      [&](const auto &kernels, const auto &there) { kernels.divergence[loss](call, there); });
}

void softmax(const MatrixTuple &input, const MatrixTuple &output, int64_t rows, int64_t vocab, double temperature,
             bool log, bool wide, const WhereTuple &where) {
  const kd_cpu::Softmax call{matrix(input), {}, matrix(output), rows, vocab, 1.0 / temperature, log};
  present(rows, vocab, {address(input), address(output)});
  advise_huge_pages(call.output, rows, where);
  run(call, call.input.dtype, wide, where, active->softmax[wide],
      [&](const auto &kernels, const auto &there) { kernels.softmax(call, there); });
}

void softmax_backward(const MatrixTuple &upstream, const MatrixTuple &output, const MatrixTuple &gradient, int64_t rows,
                      int64_t vocab, double temperature, bool log, bool wide, const WhereTuple &where) {
  const kd_cpu::Softmax call{matrix(output), matrix(upstream), matrix(gradient), rows, vocab, 1.0 / temperature, log};
  present(rows, vocab, {address(upstream), address(output), address(gradient)});
  advise_huge_pages(call.output, rows, where);
  run(call, call.input.dtype, wide, where, active->softmax_backward[wide],
      [&](const auto &kernels, const auto &there) { kernels.softmax_backward(call, there); });
}

void scale_rows(const MatrixTuple &gradient, uintptr_t factor, bool per_row, int64_t rows, int64_t vocab, bool wide,
                const WhereTuple &where) {
  const kd_cpu::Scale call{matrix(gradient), pointer(factor), per_row, rows, vocab};
  present(rows, vocab, {address(gradient), factor});
  run(call, call.gradient.dtype, wide, where, active->scale[wide],
      [&](const auto &kernels, const auto &there) { kernels.scale(call, there); });
}

void trilateral(const MatrixTuple &student, const MatrixTuple &teacher, const MaybeMatrix &class_mean, uintptr_t labels,
                uintptr_t distances, Address statistics, int64_t rows, int64_t vocab, int64_t ignore_index,
                bool squared, bool wide, const WhereTuple &where) {
  const kd_cpu::Trilateral call{matrix(student),
                                matrix(teacher),
                                matrix(class_mean),
                                {},
                                pointer<int64_t>(labels),
                                pointer(distances),
                                pointer(statistics),
                                nullptr,
                                rows,
                                vocab,
                                ignore_index,
                                squared};
  present(rows, vocab, {address(student), address(teacher), address(class_mean), labels, distances, statistics});
  run(call, call.student.dtype, wide, where, active->trilateral[wide],
      [&](const auto &kernels, const auto &there) { kernels.trilateral(call, there); });
}

void trilateral_backward(const MatrixTuple &student, const MatrixTuple &teacher, const MaybeMatrix &class_mean,
                         const MatrixTuple &gradient, uintptr_t labels, uintptr_t distances, uintptr_t statistics,
                         uintptr_t upstream, int64_t rows, int64_t vocab, int64_t ignore_index, bool squared, bool wide,
                         const WhereTuple &where) {
  const kd_cpu::Trilateral call{matrix(student),
                                matrix(teacher),
                                matrix(class_mean),
                                matrix(gradient),
                                pointer<int64_t>(labels),
                                pointer(distances),
                                pointer(statistics),
                                pointer(upstream),
                                rows,
                                vocab,
                                ignore_index,
                                squared};
  present(rows, vocab,
          {address(student), address(teacher), address(class_mean), address(gradient), labels, distances, statistics,
           upstream});
  advise_huge_pages(call.gradient, rows, where);
  run(call, call.student.dtype, wide, where, active->trilateral_backward[wide],
      [&](const auto &kernels, const auto &there) { kernels.trilateral_backward(call, there); });
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels *kernels : kd_cpu::runnable())
    names.push_back(kernels->name);
  return names;
}

std::string cuda_unavailable() {
#ifdef KD_CUDA
  return kd_cuda::unavailable();
#else
  return "it was built without CUDA (set KDKERNELS_CUDA=1 where nvcc is, and build it again)";
#endif
}

std::vector<std::string> losses() {
  return std::vector<std::string>(active->loss_names, active->loss_names + active->losses);
}

} // namespace

PYBIND11_MODULE(_C, module) {
  // What kdkernels/backends/native.py calls, by number: both change when a signature here does.
  module.attr("interface") = 2;
  module.doc() =
      "Compiled kernels of kdkernels; arguments are addresses, so only kdkernels.backends.native calls them.";
  module.def("divergence", &divergence);
  module.def("softmax", &softmax);
  module.def("softmax_backward", &softmax_backward);
  module.def("scale_rows", &scale_rows);
  module.def("trilateral", &trilateral);
  module.def("trilateral_backward", &trilateral_backward);
  module.def("losses", &losses, "The names of the losses, in the order of their numbers.");
  module.def("cuda_unavailable", &cuda_unavailable, "Why the CUDA kernels cannot run here, or an empty string.");
  module.def("instruction_sets", &instruction_sets, "What this processor runs, fastest first.");
  module.def("instruction_set", [] { return std::string(active->name); });
  module.def("use_instruction_set", [](const std::string &name) { active = &kd_cpu::by_name(name); });
}
