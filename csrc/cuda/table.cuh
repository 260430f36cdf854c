// The table of one dtype. The includer defines KD_NAMESPACE, KD_TABLE and KD_ELEMENT.

#include "launch.cuh"

namespace KD_NAMESPACE {

template <class Loss> void divergence(const Divergence &call, const Where &where) {
  const Parameters parameters{call.scalar, call.table, call.orders, call.width};
  Choose<Loss>::with(parameters, [&](const auto &term) {
    using Term = typename std::decay<decltype(term)>::type;
    launch_rows(DivergenceWork<Term, KD_ELEMENT>{term}, call, where);
  });
}

#define KD_DIVERGENCE(name, Term) divergence<Term<float>>,
static void (*const kDivergences[])(const Divergence &, const Where &) = {KD_LOSSES(KD_DIVERGENCE)};
#undef KD_DIVERGENCE

} // namespace KD_NAMESPACE

namespace kd_cuda {

const Kernels KD_TABLE = {
    KD_NAMESPACE::KD_ELEMENT::name,
    sizeof(KD_NAMESPACE::kDivergences) / sizeof(KD_NAMESPACE::kDivergences[0]),
    KD_NAMESPACE::kDivergences,
    [](const kd_calls::Softmax &call, const Where &where) {
      KD_NAMESPACE::launch_rows(KD_NAMESPACE::SoftmaxWork<KD_NAMESPACE::KD_ELEMENT>{}, call, where);
    },
    [](const kd_calls::Softmax &call, const Where &where) {
      KD_NAMESPACE::launch_rows(KD_NAMESPACE::SoftmaxBackwardWork<KD_NAMESPACE::KD_ELEMENT>{}, call, where);
    },
    KD_NAMESPACE::launch_scale<KD_NAMESPACE::KD_ELEMENT>,
    [](const kd_calls::Trilateral &call, const Where &where) {
      KD_NAMESPACE::launch_rows(KD_NAMESPACE::TrilateralWork<KD_NAMESPACE::KD_ELEMENT>{}, call, where);
    },
    KD_NAMESPACE::launch_trilateral_gradient<KD_NAMESPACE::KD_ELEMENT>,
};

} // namespace kd_cuda
