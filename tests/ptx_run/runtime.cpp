// The CUDA runtime as far as host code that nvcc compiled needs it: one device, whose memory is the host's.
#include "runtime.h"

#include <cuda_runtime_api.h>

#include <map>
#include <string>

#include "ptx.h"

namespace {

struct Function {
  ptx_run::Module* module;
  std::string name;
  int shared_limit = 48 << 10;  // until cudaFuncSetAttribute raises it
};

std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}
std::vector<std::unique_ptr<ptx_run::Module>>& modules() {
  static std::vector<std::unique_ptr<ptx_run::Module>> all;
  return all;
}

cudaError_t last = cudaSuccess;
cudaError_t raise(cudaError_t e, const std::string& why) {
  ptx_run::device.message = why;
  return last = e;
}

// The PTX of a fat binary: a header of 16 bytes, then entries of kind, header and payload
std::string ptx_of(const unsigned char* fat) {
  const auto read = [](const unsigned char* p, auto* v) { std::memcpy(v, p, sizeof *v); };
  uint32_t magic;
  uint16_t header;
  uint64_t size;
  read(fat, &magic), read(fat + 6, &header), read(fat + 8, &size);
  if (magic != 0xba55ed50) throw ptx_run::Fault("not a fat binary");
  for (const unsigned char *p = fat + header, *end = p + size; p < end;) {
    uint16_t kind;
    uint32_t own;
    uint64_t payload, flags;
    read(p, &kind), read(p + 4, &own), read(p + 8, &payload), read(p + 40, &flags);
    if (kind == 1) {
      std::string text(reinterpret_cast<const char*>(p + own), payload);
      if (text.find(".version") == std::string::npos) throw ptx_run::Fault("compressed PTX: compile with --no-compress");
      return text.substr(0, text.find('\0'));
    }
    p += own + payload;
  }
  throw ptx_run::Fault("a fat binary without PTX");
}

cudaError_t launch(const void* host, dim3 grid, dim3 block, void** args, size_t shared) {
  const auto found = functions().find(host);
  if (found == functions().end()) return raise(cudaErrorInvalidDeviceFunction, "no such kernel");
  Function& f = found->second;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return raise(cudaErrorInvalidConfiguration, "grid");
  try {
    ptx_run::Program& p = f.module->program(f.name);
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    if (!threads || threads > 1024) return raise(cudaErrorInvalidConfiguration, "block");
    if (threads > p.max_threads) return raise(cudaErrorLaunchOutOfResources, "more threads than .maxntid");
    if (shared > static_cast<size_t>(f.shared_limit))
      return raise(cudaErrorInvalidValue,
                   std::to_string(shared) + " bytes of shared memory, allowed " + std::to_string(f.shared_limit));
    std::vector<unsigned char> params(p.param_bytes);
    for (size_t k = 0; k < p.params.size(); ++k) std::memcpy(&params[p.params[k].offset], args[k], p.params[k].size);
    ptx_run::run_grid(p, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, params.data());
  } catch (const ptx_run::Fault& e) {
    return raise(cudaErrorLaunchFailure, e.what());
  }
  return cudaSuccess;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
std::vector<Configuration> configurations;

}  // namespace

namespace ptx_run {
Device device;
void each_module(const std::function<void(Module&)>& f) {
  for (auto& m : modules()) f(*m);
}
}  // namespace ptx_run

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  const unsigned char* fat;
  std::memcpy(&fat, static_cast<unsigned char*>(wrapper) + 8, sizeof fat);
  modules().push_back(std::make_unique<ptx_run::Module>(ptx_of(fat)));
  return reinterpret_cast<void**>(modules().back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  functions()[host] = {reinterpret_cast<ptx_run::Module*>(handle), name};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return cudaErrorMissingConfiguration;
  const Configuration c = configurations.back();
  configurations.pop_back();
  *grid = c.grid, *block = c.block, *shared = c.shared, *static_cast<void**>(stream) = c.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t) {
  return launch(reinterpret_cast<const void*>(kernel), grid, block, args, shared);
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t) {
  return launch(host, grid, block, args, shared);
}
cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute what, int value) {
  const auto found = functions().find(host);
  if (found == functions().end()) return raise(cudaErrorInvalidDeviceFunction, "no such kernel");
  if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > ptx_run::device.shared_per_block)
    return raise(cudaErrorInvalidValue, "more shared memory than there is");
  found->second.shared_limit = value;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  *attributes = {};
  return functions().count(host) ? cudaSuccess : raise(cudaErrorInvalidDeviceFunction, "no such kernel");
}
cudaError_t cudaGetLastError() {
  const cudaError_t e = last;
  last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : ptx_run::device.message.c_str(); }
const char* cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "an error"; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  switch (what) {
    case cudaDevAttrComputeCapabilityMajor: *value = ptx_run::device.capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = ptx_run::device.capability % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = ptx_run::device.sms; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = ptx_run::device.shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = ptx_run::device.shared_per_sm; break;
    default: return raise(cudaErrorInvalidValue, "attribute " + std::to_string(what));
  }
  return cudaSuccess;
}

}  // extern "C"
