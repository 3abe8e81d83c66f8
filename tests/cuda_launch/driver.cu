// One situation per run, by name: a fresh process each, as what a process does first is the point of some.
#include <cstdio>
#include <cstring>
#include <thread>

#include "family.h"
#include "ptx.cuh"
#include "runtime.h"

namespace replknet_ext::cuda {
// The families' kernels are not linked: those below take their place.
#define REPLKNET_EXT_ENTRY(name) \
  int launch_##name(const LaunchPlan&, const Tensors&, void*) { return 0; }
REPLKNET_EXT_FAMILIES(REPLKNET_EXT_ENTRY)
#undef REPLKNET_EXT_ENTRY
}  // namespace replknet_ext::cuda

namespace {

using replknet_ext::cuda::DeviceLimits;

struct Args {
  int* out;
};
__global__ void kernel(const __grid_constant__ Args a) { a.out[threadIdx.x] = 1; }
__global__ void other_kernel(const __grid_constant__ Args a) { a.out[threadIdx.x] = 2; }

constexpr int kPlain = 40 << 10, kSmall = 52 << 10, kLarge = 222 << 10;

// The error of a launch, and what the caller's next check would find.
int launch(int shared, void (*entry)(Args) = kernel) {
  const int e = launch_kernel(entry, dim3(1), dim3(32), shared, nullptr, Args{nullptr});
  if (const int left = cudaPeekAtLastError()) std::printf("left %d\n", left);
  return e;
}

void limits(int device) {
  cudaSetDevice(device);
  DeviceLimits l{};
  const bool keep = replknet_ext::cuda::usable_limits(device, &l);
  std::printf("limits %d %d %d %d\n", device, l.capability, l.shared_per_block, keep);
  if (const int left = cudaPeekAtLastError()) std::printf("left %d\n", left);
}

void graph(const std::initializer_list<int>& sizes) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal);
  limits(0);
  for (int shared : sizes) launch(shared);
  cudaStreamEndCapture(nullptr, &graph);
  std::printf("instantiate %d\n", static_cast<int>(cudaGraphInstantiate(&exec, graph, 0)));
}

}  // namespace

int main(int, char** arguments) {
  const auto is = [&](const char* name) { return std::strcmp(arguments[1], name) == 0; };
  const auto often = [](int shared) {
    for (int i = 0; i < 1000; ++i) launch(shared);
  };
  if (is("threads")) {
    std::thread one(often, kLarge), two(often, kSmall);
    one.join(), two.join();
  } else if (is("kernels")) {
    for (auto* entry : {kernel, other_kernel})
      for (int shared : {kPlain, kLarge}) launch(shared, entry);
  } else if (is("devices")) {
    for (int device : {0, 1, 0, 1}) cudaSetDevice(device), launch(kSmall);
  } else if (is("graph")) {
    graph({kLarge, kSmall});
  } else if (is("graph_before_12_3")) {
    machine.loads_in_captures = false;
    graph({kLarge});
    limits(0);
    launch(kLarge);
  } else if (is("too_large")) {
    launch(228 << 10);
    launch(kLarge);
  } else if (is("limits")) {
    limits(0), limits(1);
  } else if (is("no_code")) {
    machine.without_code = {1};
    limits(0), limits(1);
  } else if (is("old_driver")) {
    machine.old_driver = true;
    limits(0);
    launch(kLarge);
  } else {
    std::printf("no situation of that name\n");
    return 1;
  }
  return 0;
}
