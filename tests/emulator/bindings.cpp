// The emulator's Python module: the project's launchers, the planted bugs, options and counters. Addresses are integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <optional>

#include "../names.h"
#include "backend.h"
#include "fma/work.h"
#include "model.h"
#include "runtime.h"

namespace py = pybind11;
namespace rc = replknet_ext::cuda;
using replknet_ext::Problem;

int choice_of_family(const char* name, const Problem& p, const rc::DeviceLimits& limits, const char** why);
int launch_planted(int bug, const void* x, void* y);
int launch_fragments(int type, const void* x, void* y);
const char* planted_name(int bug);

namespace {

Problem to_problem(const py::dict& d) {
  const auto size = [&](const char* key) { return d[key].cast<int64_t>(); };
  const auto named = [&](const char* key, const auto& table) {
    return replknet_ext::value_of(key, d[key].cast<std::string>(), table);
  };
  using namespace replknet_ext;
  return {size("n"), size("c"), size("h"), size("w"), size("kh"), size("kw"), size("ho"), size("wo"), size("pad_top"),
          size("pad_left"), named("dtype", kDTypes), d["channels_last"].cast<bool>(), d["flip"].cast<bool>(),
          named("activation", kActivations),
          named("pass", kPasses) == QueryPass::bwd_weight ? Pass::bwd_weight : Pass::fwd,
          named("precision", kPrecisions), named("algorithm", kAlgorithms)};
}

rc::DeviceLimits to_limits(const std::array<int, 4>& v) { return {v[0], v[1], v[2], v[3]}; }

template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

std::string only_family;  // what the automatic choice is limited to; "": nothing

// variant, or the number that stands for the automatic choice of `only_family`; throws the family's reason.
int chosen(const Problem& p, const rc::DeviceLimits& limits, int variant) {
  if (variant != -1 || only_family.empty()) return variant;
  const char* why = nullptr;
  const int number = choice_of_family(only_family.c_str(), p, limits, &why);
  if (why) throw py::value_error(why);
  return number;
}

// tensors: the fields of Tensors that are there, by name, as addresses
std::string launch(const py::dict& problem, const std::map<std::string, uint64_t>& tensors, int variant,
                   const std::array<int, 4>& limits) {
  const auto at = [&](const char* name) {
    const auto found = tensors.find(name);
    return pointer<void>(found == tensors.end() ? 0 : found->second);
  };
  const rc::Tensors t{at("x"), at("w"), at("bias"), at("grad"), at("out"), at("grad_bias"), at("workspace")};
  const Problem p = to_problem(problem);
  const rc::DeviceLimits l = to_limits(limits);
  rc::PlanHandle handle;
  if (const char* why = rc::plan(p, l, chosen(p, l, variant), &handle)) throw py::value_error(why);
  const int e = rc::launch(*handle, t, nullptr);
  return e ? rc::error_message(e) : "";
}

std::string transpose(uint64_t from, uint64_t to, int64_t matrices, int64_t rows, int64_t columns, int element_bytes) {
  const int e = rc::transpose(pointer<void>(from), pointer<void>(to), matrices, rows, columns, element_bytes, nullptr);
  return e ? rc::error_message(e) : "";
}

py::dict plan(const py::dict& problem, const std::array<int, 4>& limits, int variant) {
  rc::PlanHandle handle;
  const Problem q = to_problem(problem);
  const rc::DeviceLimits l = to_limits(limits);
  if (const char* why = rc::plan(q, l, chosen(q, l, variant), &handle)) throw py::value_error(why);
  const rc::LaunchPlan& p = *handle;
  using namespace py::literals;
  py::dict found("variant"_a = p.variant, "name"_a = p.name, "parts"_a = p.parts, "warps"_a = p.warps,
                 "shared_bytes"_a = p.shared_bytes, "blocks_per_sm"_a = p.blocks_per_sm, "blocks"_a = p.blocks,
                 "mmas"_a = p.mmas, "cycles"_a = p.cycles, "spill_rows"_a = p.spill_rows,
                 "spill_columns"_a = p.spill_columns, "workspace_bytes"_a = p.workspace_bytes, "family"_a = p.family);
  for (const rc::PlanDetail& detail : p.details)
    if (detail.name) found[detail.name] = detail.value;
  return found;
}

std::optional<std::string> supports(const py::dict& problem, const std::array<int, 4>& limits, int variant) {
  rc::PlanHandle handle;
  const char* why = rc::plan(to_problem(problem), to_limits(limits), variant, &handle);
  return why ? std::optional<std::string>(why) : std::nullopt;
}

std::vector<std::string> variants(const std::string& pass) {
  std::vector<std::string> names;
  using namespace replknet_ext;
  const Pass p = value_of("pass", pass, kPasses) == QueryPass::bwd_weight ? Pass::bwd_weight : Pass::fwd;
  for (int i = 0; i < rc::variant_count(p); ++i) names.emplace_back(rc::variant_name(p, i));
  return names;
}

// The rules of model.h that all planners share.
int resident_blocks(const std::array<int, 4>& limits, int warps, int64_t shared_bytes, int register_warps) {
  return rc::resident_blocks(to_limits(limits), warps, shared_bytes, register_warps);
}

// block: the fields of BlockCycles; work: cycles of 1, 2, ... blocks side by side
double sm_cycles(int64_t blocks, int resident, int sms, const std::array<double, 4>& block,
                 const std::vector<double>& work) {
  return rc::sm_cycles(rc::Waves(blocks, resident, sms), {block[0], block[1], block[2], block[3]},
                       [&](int n) { return work.at(static_cast<size_t>(n - 1)); });
}

void set_options(const std::string& schedule, uint64_t seed, bool banks, uint64_t first_block, uint64_t last_block,
                 bool truncate) {
  using emu::Schedule;
  emu::options = {schedule == "ordered"    ? Schedule::ordered
                  : schedule == "reversed" ? Schedule::reversed
                  : schedule == "lockstep" ? Schedule::lockstep
                                           : Schedule::random,
                  seed, banks, first_block, last_block, truncate};
}

std::map<std::string, uint64_t> take_counters() {
  const emu::Counters c = emu::counters;
  emu::counters = {};
  return {{"mma", c.mma},           {"ldmatrix", c.ldmatrix}, {"ldmatrix_conflicts", c.ldmatrix_conflicts},
          {"cp_async", c.cp_async}, {"barriers", c.barriers}, {"switches", c.switches},
          {"accesses", c.accesses}, {"access_conflicts", c.access_conflicts},
          {"blocks", c.blocks},     {"threads", c.threads},   {"shared_bytes", c.shared_bytes}};
}

// Places of the code with bank conflicts: (address in this module, accesses, extra wavefronts); addr2line names them.
std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> take_sites() {
  std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> out;
  for (const auto& [site, n] : emu::sites) out.emplace_back(reinterpret_cast<uint64_t>(site), n.first, n.second);
  emu::sites.clear();
  return out;
}

void watch(const std::string& name, uint64_t address, size_t bytes, size_t guard, bool writable) {
  const auto* begin = pointer<const unsigned char>(address);
  emu::buffers.push_back({begin, begin + bytes, guard, writable, name,
                          std::vector<uint64_t>(writable ? bytes / 2 + 1 : 0)});
}

}  // namespace

PYBIND11_MODULE(EMULATOR_MODULE, m) {
  m.attr("race_check") = emu::instrumented;
  m.def("launch", &launch);
  m.def("transpose", &transpose);
  m.def("plan", &plan);
  m.def("supports", &supports);
  m.def("resident_blocks", &resident_blocks);
  m.def("sm_cycles", &sm_cycles);
  m.def("plans_made", &rc::plans_made);
  m.def("fma_blocks_counted", [] { return rc::fma_blocks_counted.load(); });
  m.def("variants", &variants, py::arg("pass_") = "fwd");
  m.def("planted", [](const std::string& bug, uint64_t x, uint64_t y) -> std::string {
    for (int i = 0; planted_name(i); ++i)
      if (bug == planted_name(i)) return launch_planted(i, pointer<void>(x), pointer<void>(y)) ? emu::last_error : "";
    throw py::key_error(bug);
  });
  m.def("fragments", [](const std::string& type, uint64_t x, uint64_t y) {
    launch_fragments(type == "tf32" ? 2 : type == "bf16", pointer<void>(x), pointer<void>(y));
  });
  m.def("only", [](const std::string& family) { only_family = family; });
  m.def("set_options", &set_options, py::arg("schedule") = "ordered", py::arg("seed") = 0, py::arg("banks") = false,
        py::arg("first_block") = 0, py::arg("last_block") = ~0ull, py::arg("truncate") = false);
  m.def("take_counters", &take_counters);
  m.def("take_sites", &take_sites);
  m.def("watch", &watch);
  m.def("unwatch", [] { emu::buffers.clear(); });
}
