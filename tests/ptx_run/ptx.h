// Runs the PTX of a CUDA program on the CPU: what decode.cpp, ops.cpp, machine.cpp and runtime.cpp share.
// A warp is 32 lanes wide in memory: a register is an array of 32 values, an instruction a loop over them.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ptx_run {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Warp;
struct Inst;
using Run = void (*)(Warp&, const Inst&, uint32_t lanes);

// What the scheduler must know of an instruction. warp: the lanes named by its member mask (aligned: all lanes of the
// warp that have not exited) arrive together.
enum class Kind : uint8_t { plain, branch, exit, barrier, aligned, members };

struct Opcode {
  std::string name;
  // One character an operand, vectors taken apart, the results first. h, w, d: a register of 16, 32, 64 bits or a
  // constant; p: a predicate; a: an address, A: the second one; i: a constant
  std::string operands;
  Run run;
  Kind kind = Kind::plain;
};
const Opcode* find_opcode(std::string_view name);

constexpr int kMostOperands = 14;
struct Inst {
  Run run = nullptr;
  Kind kind = Kind::plain;
  bool negate = false;              // of the guard
  bool wide = false;                // the address register has 64 bits
  bool read_only = false;           // a load of memory that nothing writes meanwhile
  int guard = -1;                   // place of the guard's predicate
  int target = 0;                   // of a branch
  uint32_t op[kMostOperands] = {};  // places of the registers, in bytes of a warp's register file
  int64_t imm = 0;                  // displacement of an address, or a constant
  const Opcode* opcode = nullptr;
  std::string_view text;
  int file = 0, line = 0;  // of the source, by .loc
};

struct Param {
  std::string name;
  size_t offset, size;
};

struct Program {  // an entry
  std::string name;
  std::vector<Inst> code;
  std::vector<uint64_t> hits;  // by instruction
  size_t register_bytes = 0;   // of a warp
  struct Constant {
    uint32_t place;
    uint64_t value;
    int bytes;  // of a lane; 0: a predicate
  };
  std::vector<Constant> constants;
  std::vector<std::pair<uint32_t, std::string>> specials;  // %tid.x, ...
  std::vector<Param> params;
  size_t param_bytes = 0;
  unsigned max_threads = 1024;
  const std::map<int, std::string>* files = nullptr;
};

struct Module {  // of one translation unit
  std::string text;
  std::map<std::string, size_t, std::less<>> entries;  // name -> place of ".entry" in the text
  std::map<int, std::string> files;
  std::map<std::string, std::unique_ptr<Program>, std::less<>> programs;
  explicit Module(std::string ptx);
  Program& program(const std::string& entry);  // decoded at first use
};

// ---- memory ----

constexpr uint64_t kSharedBase = 0x400;         // where dynamic shared memory begins in its own space
constexpr uint64_t kSharedWindow = 1ull << 60;  // generic address of shared address 0
enum class Space { shared, global, generic, param };
enum State : uint8_t { kUndefined, kDefined, kInFlight };  // of a byte of shared memory

struct Range {  // global memory that kernels may use
  uint64_t begin;
  size_t bytes;
  bool writable;
  std::string name;
  std::vector<uint32_t> writer;  // of 2 bytes: 1 + thread of this launch
  std::vector<bool> defined;     // of 2 bytes; empty: all
  // Of tensors too large to hold: memory is filled when a page is first used, writers are kept by place.
  std::function<void(uint64_t first, size_t bytes)> fill;
  std::vector<bool> filled;                        // by page
  std::unordered_map<uint64_t, uint32_t> writers;  // of 2 bytes
};
constexpr uint64_t kPage = 4096;
Range& watch(const void* p, size_t bytes, bool writable, const char* name);
void watch_lazily(const void* p, size_t bytes, bool writable, const char* name,
                  std::function<void(uint64_t, size_t)> fill);
const Range* watched(const std::string& name);
void unwatch();

struct Options {
  uint64_t seed = 0;            // 0: warps in order, lanes reconverge at once; else random
  bool undefined_reads = true;  // of shared memory are faults
  bool races = true;            // of shared memory are faults
  int64_t sample = 0;  // only so many blocks at both ends of a grid and in between, which may be cut short; 0: all
};
extern Options options;

struct Totals {
  uint64_t launches = 0, blocks = 0, instructions = 0, mma = 0, met = 0;  // met: places of programs
};
extern Totals totals;

struct Dim {
  unsigned x, y, z;
};
// Runs a grid. Throws Fault.
void run_grid(Program& program, Dim grid, Dim block, size_t smem, const unsigned char* params);

// ---- a running block ----

struct Copy {  // a cp.async that has not landed
  uint32_t dst;
  int bytes, lane, group;
  unsigned char data[16];
};

struct Group {  // lanes of a warp that are at the same place
  int pc;
  uint32_t lanes;
  bool waits;
};

struct Block;
struct Warp {
  Block* block;
  int number;
  unsigned char* regs;
  uint32_t alive = 0;
  bool at_barrier = false;
  std::vector<Group> groups;
  std::vector<Copy> copies;
  int committed[32] = {};
  uint32_t epoch = 1;  // counts the meetings of its lanes

  template <class T>
  T* at(uint32_t place) const {
    return reinterpret_cast<T*>(regs + place);
  }
  uint32_t& predicate(uint32_t place) const { return *reinterpret_cast<uint32_t*>(regs + place); }
  uint64_t address(const Inst& i, uint32_t place, int lane) const {
    if (i.wide) return at<uint64_t>(place)[lane] + static_cast<uint64_t>(i.imm);
    return at<uint32_t>(place)[lane] + static_cast<uint32_t>(i.imm);
  }
};

struct Touch {                       // who used 2 bytes of shared memory last
  uint32_t write_time, read_time;    // barriers of the block
  uint32_t write_epoch, read_epoch;  // meetings of the warp
  int16_t writer, reader;            // threads; reader < 0: several, see check_races
};

struct Block {
  Program* program;
  Dim grid, block, index;
  const unsigned char* params;
  std::vector<unsigned char> smem, state;
  std::vector<Touch> touched;
  std::vector<Warp> warps;
  std::vector<unsigned char> registers;
  uint32_t time = 1;
  uint64_t random = 1;
  int exited = 0;    // threads
  int64_t left = 0;  // instructions of warps that the block may still run

  uint64_t draw() {
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return random;
  }
  unsigned char* shared(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write);
  unsigned char* global(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write);
  template <Space space>
  unsigned char* memory(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write);
  void copy(Warp& w, const Inst& i, int lane, uint64_t dst, uint64_t src, int bytes);
  void land(Warp& w, uint32_t lanes, int groups_left);
  [[noreturn]] void fault(const Warp& w, const Inst& i, int lane, const std::string& what) const;
};

template <Space space>
inline unsigned char* Block::memory(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write) {
  if constexpr (space == Space::shared) return shared(w, i, lane, address, bytes, write);
  if constexpr (space == Space::global) return global(w, i, lane, address, bytes, write);
  if constexpr (space == Space::generic)
    return address >= kSharedWindow ? shared(w, i, lane, address - kSharedWindow, bytes, write)
                                    : global(w, i, lane, address, bytes, write);
  if (address > program->param_bytes || address + bytes > program->param_bytes || address % bytes)
    fault(w, i, lane, "kernel parameters at " + std::to_string(address));
  return const_cast<unsigned char*>(params) + address;
}

}  // namespace ptx_run
