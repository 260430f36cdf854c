// kLanes rows into vector lanes and back: tiles as wide as a register are turned in registers, a few shuffles each.
#pragma once

#include <utility>

#include "blocks.inl"

namespace KD_NAMESPACE {

using kd_cpu::kLanes;
using kd_cpu::kShortVocab;

template <class Real> using Columns = Real[kShortVocab][kLanes];
template <class Real> using Staged = Real[kLanes][kShortVocab]; // rows that are converted or padded, on their way
static_assert(kShortVocab % kPad == 0, "padded rows fit");

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class Real> struct Register;
template <> struct Register<float> {
  typedef float Type __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t Indices __attribute__((vector_size(kRegisterBytes)));
};
template <> struct Register<double> {
  typedef double Type __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t Indices __attribute__((vector_size(kRegisterBytes)));
};
template <class Real> constexpr int kWidth = kRegisterBytes / static_cast<int>(sizeof(Real));
static_assert(kWidth<float> <= kPad && kLanes % kWidth<float> == 0, "a tile fits the padded columns and the lanes");

// Of a tile cut into squares of `distance` columns and rows: swaps the squares beside the diagonal, in two of its rows.
template <class Real, int distance, int... lane>
KD_FN void swap_squares(typename Register<Real>::Type &a, typename Register<Real>::Type &b,
                        std::integer_sequence<int, lane...>) {
#ifdef __clang__
  const auto upper = __builtin_shufflevector(a, b, (lane & distance ? kWidth<Real> + lane - distance : lane)...);
  const auto lower = __builtin_shufflevector(a, b, (lane & distance ? kWidth<Real> + lane : lane + distance)...);
#else
  using Indices = typename Register<Real>::Indices;
  const auto upper = __builtin_shuffle(a, b, Indices{(lane & distance ? kWidth<Real> + lane - distance : lane)...});
  const auto lower = __builtin_shuffle(a, b, Indices{(lane & distance ? kWidth<Real> + lane : lane + distance)...});
#endif
  a = upper, b = lower;
}

template <class Real, int distance = 1> KD_FN void transpose_tile(typename Register<Real>::Type (&tile)[kWidth<Real>]) {
#pragma GCC unroll 16
  for (int row = 0; row < kWidth<Real>; ++row)
    if (!(row & distance))
      swap_squares<Real, distance>(tile[row], tile[row + distance], std::make_integer_sequence<int, kWidth<Real>>());
  if constexpr (2 * distance < kWidth<Real>)
    transpose_tile<Real, 2 * distance>(tile);
}

// target(i)[0 .. width) = the i-th column of the tile whose rows begin at source(i).
template <class Real, class Source, class Target> KD_FN void turn_tile(const Source &source, const Target &target) {
  typename Register<Real>::Type tile[kWidth<Real>];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<Real>; ++i)
    __builtin_memcpy(&tile[i], source(i), sizeof tile[i]);
  transpose_tile<Real>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<Real>; ++i)
    __builtin_memcpy(target(i), &tile[i], sizeof tile[i]);
}

// Calls walk(v) for tiles that cover `columns` >= width of them; the last one may overlap its neighbour.
template <class Real, class Walk> KD_FN void for_tiles(int64_t columns, const Walk &walk) {
  for (int64_t v = 0; v < columns; v += kWidth<Real>)
    walk(v + kWidth<Real> <= columns ? v : columns - kWidth<Real>);
}

// lanes[v][row] = rows[row][v], v < columns; columns >= kPad.
template <class Real> static void rows_to_lanes(const Real *const *rows, int64_t columns, Real (*lanes)[kLanes]) {
  for_tiles<Real>(columns, [=](int64_t v) {
    for (int64_t row = 0; row < kLanes; row += kWidth<Real>)
      turn_tile<Real>([=](int i) { return rows[row + i] + v; }, [=](int i) { return &lanes[v + i][row]; });
  });
}

// rows[row][v] = lanes[v][row], v < columns; columns >= kPad.
template <class Real> static void lanes_to_rows(const Real (*lanes)[kLanes], int64_t columns, Real *const *rows) {
  for_tiles<Real>(columns, [=](int64_t v) {
    for (int64_t row = 0; row < kLanes; row += kWidth<Real>)
      turn_tile<Real>([=](int i) { return &lanes[v + i][row]; }, [=](int i) { return rows[row + i] + v; });
  });
}

// Lane `row` gets the matrix's row at(row), of `vocab` columns, or zeros where read(row) is false.
template <class Real, class Read, class At>
static void read_lanes(const Matrix &matrix, int64_t vocab, const Read &read, const At &at, Staged<Real> &staged,
                       Columns<Real> &lanes) {
  static const Real zeros[kShortVocab] = {};
  const Real *from[kLanes];
  const bool direct = matrix.dtype == Native<Real>::dtype && vocab >= kPad;
  for (int64_t row = 0; row < kLanes; ++row) {
    if (!read(row))
      from[row] = zeros;
    else if (direct)
      from[row] = static_cast<const Real *>(matrix.data) + at(row) * matrix.stride;
    else
      from[row] = load(matrix, at(row), 0, vocab, staged[row]);
  }
  rows_to_lanes(from, direct ? vocab : kd_cpu::padded(vocab), lanes);
}

// Lanes 0 .. rows - 1 as rows [first, first + rows) of a matrix of `vocab` columns; the lanes are padded to kPad of
// them.
template <class Real>
static void write_lanes(const Columns<Real> &lanes, const Matrix &matrix, int64_t first, int64_t rows, int64_t vocab,
                        Staged<Real> &staged) {
  const bool direct = matrix.dtype == Native<Real>::dtype && vocab >= kPad;
  Real *to[kLanes];
  for (int64_t row = 0; row < kLanes; ++row)
    to[row] = direct && row < rows ? static_cast<Real *>(matrix.data) + (first + row) * matrix.stride : staged[row];
  lanes_to_rows(lanes, direct ? vocab : kd_cpu::padded(vocab), to);
  for (int64_t row = 0; !direct && row < rows; ++row)
    store(matrix, first + row, 0, vocab, staged[row], false);
}

} // namespace KD_NAMESPACE
