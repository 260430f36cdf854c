// The table of one instruction set. The includer defines KD_NAMESPACE, KD_TABLE and KD_TABLE_NAME.

#include "divergence.inl"
#include "geometry.inl"
#include "softmax.inl"

namespace KD_NAMESPACE {

#define KD_DIVERGENCE(name, Term) divergence<float, Term<float>>, divergence<double, Term<double>>,
static void (*const kDivergences[])(const Divergence &, int64_t, int64_t, void *) = {KD_LOSSES(KD_DIVERGENCE)};
#undef KD_DIVERGENCE

#define KD_NAME(name, Term) #name,
static const char *const kNames[] = {KD_LOSSES(KD_NAME)};
#undef KD_NAME

} // namespace KD_NAMESPACE

namespace kd_cpu {

const Kernels KD_TABLE = {
    KD_TABLE_NAME,
    sizeof(KD_NAMESPACE::kNames) / sizeof(KD_NAMESPACE::kNames[0]),
    KD_NAMESPACE::kNames,
    KD_NAMESPACE::kDivergences,
    {KD_NAMESPACE::softmax<float>, KD_NAMESPACE::softmax<double>},
    {KD_NAMESPACE::softmax_backward<float>, KD_NAMESPACE::softmax_backward<double>},
    {KD_NAMESPACE::scale_rows<float>, KD_NAMESPACE::scale_rows<double>},
    {KD_NAMESPACE::trilateral<float>, KD_NAMESPACE::trilateral<double>},
    {KD_NAMESPACE::trilateral_backward<float>, KD_NAMESPACE::trilateral_backward<double>},
};

} // namespace kd_cpu
