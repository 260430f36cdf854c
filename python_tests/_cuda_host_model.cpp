// The schedules of csrc/cuda on a host, behind functions for ctypes: any loss, dtype, form and team of threads.
//
// Each returns what its schedule does (_cuda_host_schedules.h), or -1 for a dtype or a loss that there is none.
#define KD_NAMESPACE kd_host

#include "_cuda_host_schedules.h"

namespace KD_NAMESPACE {

template <class Body> int with_element(int dtype, const Body &body) {
  switch (static_cast<kd_calls::DType>(dtype)) {
  case kd_calls::DType::float32:
    return body(Float32{});
  case kd_calls::DType::float16:
    return body(Float16{});
  case kd_calls::DType::bfloat16:
    return body(BFloat16{});
  default:
    return -1;
  }
}

template <class Element> int divergence_by_number(int loss, const Divergence &call, const Shape &shape) {
#define KD_DIVERGENCE(name, Term) &divergence<Element, Term<float>>,
  static int (*const each[])(const Divergence &, const Shape &) = {KD_LOSSES(KD_DIVERGENCE)};
#undef KD_DIVERGENCE
  return loss < 0 || loss >= static_cast<int>(std::size(each)) ? -1 : each[loss](call, shape);
}

} // namespace KD_NAMESPACE

using namespace KD_NAMESPACE;

extern "C" {

// The names of the losses, in the order of their numbers, with a comma behind each.
const char *kd_losses() {
#define KD_NAME(name, Term) #name ","
  return KD_LOSSES(KD_NAME);
#undef KD_NAME
}

int kd_statistics() { return kStatistics; }

int kd_divergence(Shape shape, int dtype, int loss, Matrix student, Matrix teacher, Matrix gradient,
                  const int64_t *labels, const float *soft_weight, const float *hard_weight, float *values,
                  int64_t rows, int64_t vocab, double inverse_temperature, double soft_scale, double hard_scale,
                  double scalar, const float *table, int64_t orders, int64_t width) {
  const Divergence call{.student = student,
                        .teacher = teacher,
                        .gradient = gradient,
                        .labels = labels,
                        .soft_weight = soft_weight,
                        .hard_weight = hard_weight,
                        .values = values,
                        .rows = rows,
                        .vocab = vocab,
                        .inverse_temperature = inverse_temperature,
                        .soft_scale = soft_scale,
                        .hard_scale = hard_scale,
                        .scalar = scalar,
                        .table = table,
                        .orders = orders,
                        .width = width};
  return with_element(dtype, [&](auto element) { return divergence_by_number<decltype(element)>(loss, call, shape); });
}

int kd_softmax(Shape shape, int dtype, Matrix input, Matrix output, int64_t rows, int64_t vocab,
               double inverse_temperature, bool log) {
  const Softmax call{.input = input,
                     .upstream = {},
                     .output = output,
                     .rows = rows,
                     .vocab = vocab,
                     .inverse_temperature = inverse_temperature,
                     .log = log};
  return with_element(dtype, [&](auto element) { return run(SoftmaxWork<decltype(element)>{}, call, shape); });
}

int kd_softmax_backward(Shape shape, int dtype, Matrix output, Matrix upstream, Matrix gradient, int64_t rows,
                        int64_t vocab, double inverse_temperature, bool log) {
  const Softmax call{.input = output,
                     .upstream = upstream,
                     .output = gradient,
                     .rows = rows,
                     .vocab = vocab,
                     .inverse_temperature = inverse_temperature,
                     .log = log};
  return with_element(dtype, [&](auto element) { return run(SoftmaxBackwardWork<decltype(element)>{}, call, shape); });
}

int kd_trilateral(Shape shape, int dtype, Matrix student, Matrix teacher, Matrix class_mean, const int64_t *labels,
                  float *distances, float *statistics, int64_t rows, int64_t vocab, int64_t ignore_index,
                  bool squared) {
  const Trilateral call{.student = student,
                        .teacher = teacher,
                        .class_mean = class_mean,
                        .gradient = {},
                        .labels = labels,
                        .distances = distances,
                        .statistics = statistics,
                        .upstream = nullptr,
                        .rows = rows,
                        .vocab = vocab,
                        .ignore_index = ignore_index,
                        .squared = squared};
  return with_element(dtype, [&](auto element) { return run(TrilateralWork<decltype(element)>{}, call, shape); });
}

int kd_trilateral_backward(Shape shape, int dtype, int64_t step, Matrix student, Matrix teacher, Matrix class_mean,
                           Matrix gradient, const int64_t *labels, float *distances, float *statistics,
                           const float *upstream, int64_t rows, int64_t vocab, int64_t ignore_index, bool squared) {
  const Trilateral call{.student = student,
                        .teacher = teacher,
                        .class_mean = class_mean,
                        .gradient = gradient,
                        .labels = labels,
                        .distances = distances,
                        .statistics = statistics,
                        .upstream = upstream,
                        .rows = rows,
                        .vocab = vocab,
                        .ignore_index = ignore_index,
                        .squared = squared};
  return with_element(dtype, [&](auto element) { return trilateral_backward<decltype(element)>(call, step, shape); });
}

int kd_scale(Shape shape, int dtype, int blocks, Matrix gradient, const float *factor, bool per_row, int64_t rows,
             int64_t vocab) {
  const Scale call{.gradient = gradient, .factor = factor, .per_row = per_row, .rows = rows, .vocab = vocab};
  return with_element(dtype, [&](auto element) { return scale<decltype(element)>(call, blocks, shape); });
}

Shares kd_shares(int64_t rows, int64_t vocab, int blocks) { return shares_of(rows, vocab, blocks); }

Plan kd_plan(int64_t vocab, int64_t item, int tensors, int64_t shared, int largest_cluster) {
  return plan_for(vocab, item, tensors, {shared, largest_cluster});
}

Slice kd_slice(int64_t vocab, int blocks, int rank) { return slice_of(vocab, blocks, rank); }
}
