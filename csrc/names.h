// Each option's values by their names: the one table that checks, conversions and messages read. Free of torch, so that
// tests which drive the kernels without it read the same table.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace replknet_ext {

template <class Value>
struct Named {
  const char* name;
  Value value;
};
constexpr Named<Precision> kPrecisions[] = {
    {"ieee", Precision::ieee}, {"tf32", Precision::tf32}, {"bf16x3", Precision::bf16x3}};
constexpr Named<Algorithm> kAlgorithms[] = {
    {"auto", Algorithm::automatic}, {"direct", Algorithm::direct}, {"fft", Algorithm::fft}};
constexpr Named<Activation> kActivations[] = {
    {"none", Activation::none}, {"relu", Activation::relu}, {"gelu", Activation::gelu}};
constexpr Named<DType> kDTypes[] = {
    {"float64", DType::f64}, {"float32", DType::f32}, {"float16", DType::f16}, {"bfloat16", DType::bf16}};
// The passes that a caller names; as a Problem, bwd_input is a flipped fwd.
enum class QueryPass { fwd, bwd_input, bwd_weight };
constexpr Named<QueryPass> kPasses[] = {
    {"fwd", QueryPass::fwd}, {"bwd_input", QueryPass::bwd_input}, {"bwd_weight", QueryPass::bwd_weight}};

// Throws std::runtime_error, as torch's own checks do, which says what `argument` may be.
template <class Value, size_t kCount>
Value value_of(const char* argument, const std::string& name, const Named<Value> (&table)[kCount]) {
  std::string allowed;
  for (size_t i = 0; i < kCount; i++) {
    if (name == table[i].name) return table[i].value;
    allowed += (i == 0 ? "'" : i + 1 < kCount ? ", '" : " or '") + std::string(table[i].name) + "'";
  }
  throw std::runtime_error(std::string(argument) + " must be " + allowed + ", got '" + name + "'");
}

template <class Value, size_t kCount>
const char* name_of(Value value, const Named<Value> (&table)[kCount]) {
  for (const Named<Value>& entry : table)
    if (entry.value == value) return entry.name;
  return "?";
}

}  // namespace replknet_ext
