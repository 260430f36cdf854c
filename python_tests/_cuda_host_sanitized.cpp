// The schedules of csrc/cuda by host threads as a program of its own, for -fsanitize: races between threads, accesses
// outside the tensors and shared memory, vectors that do not lie on a boundary of 16 bytes.
#define KD_NAMESPACE kd_host

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "_cuda_host_schedules.h"

using namespace KD_NAMESPACE;

namespace {

int calls = 0;

void expect_no_overrun(int overruns) {
  ++calls;
  if (overruns == 0)
    return;
  std::printf("call %d: %d overruns of shared memory\n", calls, overruns);
  std::exit(1);
}

// (rows, vocab) logits; nothing is allocated behind the last one, nor before the first where `before` is 0.
template <class Element> struct Logits {
  using Stored = typename Element::Stored;
  int64_t before, stride;
  std::vector<Stored> buffer;

  Logits(int64_t rows, int64_t vocab, int before_, int after)
      : before(before_), stride(before_ + vocab + after), buffer(before + (rows - 1) * stride + vocab) {
    for (size_t i = 0; i < buffer.size(); ++i)
      buffer[i] = Element::from_float(3 * std::sin(0.7f * i + before));
  }
  Matrix matrix() {
    const auto dtype = sizeof(Stored) == 4 ? kd_calls::DType::float32 : kd_calls::DType::bfloat16;
    return {buffer.data() + before, stride, dtype};
  }
};

struct Case {
  Shape shape;
  int64_t rows, vocab;
  int before; // of the student; the teacher and the gradient lie elsewhere
};

template <class Element, template <class> class Loss> void divergences(const Case &at) {
  const int64_t width = (at.vocab + 15) / 16 * 16, orders = 2;
  const std::vector<float> table(orders * width, 0.25f), weight(at.rows, 0.5f);
  std::vector<int64_t> labels(at.rows, int64_t(1) << 40);
  labels[0] = at.vocab - 1;
  std::vector<float> values(at.rows);
  for (const bool in_place : {false, true}) {
    Logits<Element> student(at.rows, at.vocab, at.before, 2), teacher(at.rows, at.vocab, at.before / 2, 1);
    Logits<Element> gradient(at.rows, at.vocab, 3, at.before);
    const Divergence call{.student = student.matrix(),
                          .teacher = teacher.matrix(),
                          .gradient = in_place ? student.matrix() : gradient.matrix(),
                          .labels = labels.data(),
                          .soft_weight = weight.data(),
                          .hard_weight = weight.data(),
                          .values = values.data(),
                          .rows = at.rows,
                          .vocab = at.vocab,
                          .inverse_temperature = in_place ? 1.0 : 0.5,
                          .soft_scale = 1,
                          .hard_scale = 1,
                          .scalar = 0.5,
                          .table = table.data(),
                          .orders = orders,
                          .width = width};
    expect_no_overrun(divergence<Element, Loss<float>>(call, at.shape));
  }
}

template <class Element> void softmaxes(const Case &at) {
  for (const bool log : {false, true}) {
    Logits<Element> input(at.rows, at.vocab, at.before, 2), upstream(at.rows, at.vocab, at.before / 2, 1);
    Logits<Element> output(at.rows, at.vocab, 3, at.before);
    Softmax call{input.matrix(), upstream.matrix(), output.matrix(), at.rows, at.vocab, 0.5, log};
    expect_no_overrun(run(SoftmaxWork<Element>{}, call, at.shape));
    expect_no_overrun(run(SoftmaxBackwardWork<Element>{}, call, at.shape));
    call.output = call.upstream;
    expect_no_overrun(run(SoftmaxBackwardWork<Element>{}, call, at.shape));
    call.output = call.input;
    expect_no_overrun(run(SoftmaxWork<Element>{}, call, at.shape));
  }
}

template <class Element> void trilaterals(const Case &at) {
  Logits<Element> student(at.rows, at.vocab, at.before, 2), teacher(at.rows, at.vocab, at.before / 2, 1);
  Logits<Element> gradient(at.rows, at.vocab, 3, at.before), class_mean(at.vocab, at.vocab, 1, 0);
  std::vector<int64_t> labels(at.rows, int64_t(1) << 40);
  labels[0] = at.vocab - 1;
  std::vector<float> distances(5 * at.rows), statistics(kStatistics * at.rows), upstream(5 * at.rows, 1.f);
  const Trilateral call{.student = student.matrix(),
                        .teacher = teacher.matrix(),
                        .class_mean = class_mean.matrix(),
                        .gradient = gradient.matrix(),
                        .labels = labels.data(),
                        .distances = distances.data(),
                        .statistics = statistics.data(),
                        .upstream = upstream.data(),
                        .rows = at.rows,
                        .vocab = at.vocab,
                        .ignore_index = -100,
                        .squared = false};
  expect_no_overrun(run(TrilateralWork<Element>{}, call, at.shape));
  expect_no_overrun(trilateral_backward<Element>(call, 16, at.shape));
}

template <class Element> void every_schedule(const Case &at) {
  divergences<Element, ForwardKL>(at); // balanced: two walks
  divergences<Element, JensenShannon>(at);
  divergences<Element, Perturbed>(at);
  softmaxes<Element>(at);
  trilaterals<Element>(at);
}

} // namespace

int main() {
  // Every team shape and form; then, for the boundaries, every place of a row's first column and many of its last.
  for (const Shape shape : {Shape{1, 8, true}, Shape{1, 8, false}, Shape{4, 2, true}, Shape{8, 2, true}})
    for (const int64_t vocab : {1, 17, 203}) {
      every_schedule<Float32>({shape, 2, vocab, 1});
      every_schedule<BFloat16>({shape, 2, vocab, 5});
    }
  for (int before = 0; before < 8; ++before)
    for (int64_t vocab = 2; vocab < 42; vocab += 3) {
      every_schedule<Float32>({{2, 1, true}, 2, vocab, before});
      every_schedule<BFloat16>({{2, 1, true}, 2, vocab, before});
    }
  std::printf("%d calls\n", calls);
}
