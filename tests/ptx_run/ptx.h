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
enum class Kind : uint8_t { plain, branch, exit, aligned, members };

struct Opcode {
  std::string name;
  // One character an operand, vectors taken apart, the results first. h, w, d: a register of 16, 32, 64 bits or a
  // constant; p: a predicate; a: an address, A: the second one; i: a constant; s: a sum of wgmma
  std::string operands;
  Run run;
  Kind kind = Kind::plain;
};
const Opcode* find_opcode(std::string_view name);
using OpcodeTable = std::unordered_map<std::string, Opcode>;
void put(OpcodeTable& t, const std::string& name, const std::string& operands, Run run, Kind kind = Kind::plain);
void put_hopper(OpcodeTable& t);  // hopper.cpp
int results_of(const Opcode& o);  // how many of the operands, the first ones, are written

constexpr int kMostOperands = 14;
struct Inst {
  Run run = nullptr;
  Kind kind = Kind::plain;
  bool negate = false;              // of the guard
  bool wide = false;                // the address register has 64 bits
  bool read_only = false;           // a load of memory that nothing writes meanwhile
  int guard = -1;                   // place of the guard's predicate
  int target = 0;                   // of a branch
  uint32_t op[kMostOperands] = {};  // places of the registers, in bytes of a warp's register file; not of sums
  std::vector<uint32_t> sums;
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
  // Warps meet in other ways than at barriers of the whole block, so who has seen what is kept by warp (order.cpp).
  bool clocks = false;
  struct Used {
    std::vector<uint32_t> written, read;  // registers
  };
  std::vector<Used> used;  // by instruction; only of programs with wgmma
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

using Clocks = std::vector<uint32_t>;  // by warp: what it did until then

constexpr uint64_t kSharedBase = 0x400;         // where dynamic shared memory begins in its own space
constexpr uint64_t kSharedWindow = 1ull << 60;  // generic address of shared address 0
enum class Space { shared, global, generic, param };
enum State : uint8_t { kUndefined, kDefined, kInFlight, kBarrier };  // of a byte of shared memory

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
uint32_t tick();  // a new time
void join(Clocks& to, const Clocks& from);
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
  uint32_t clock;  // 0: no arrival waits for it
  unsigned char data[16];
};

struct Arrival {  // of a lane at an mbarrier when its copies so far have landed
  const Inst* inst;
  uint32_t barrier;
  int lane;
  uint32_t clock;  // of the lane's warp
  Clocks seen, fenced;
};

struct Product {  // a wgmma that has not been waited for
  const Inst* inst;
  uint64_t a, b;   // descriptors; a: 0 if in registers
  bool adds;       // to the sums
  int scale_a, scale_b;
  int group;       // -1: not committed
  bool done;
};

struct Group {  // lanes of a warp that are at the same place
  int pc;
  uint32_t lanes;
  bool waits;
  bool parked = false;  // until a barrier in shared memory changes or registers become free
};

struct Block;
struct Warp {
  Block* block;
  int number;
  unsigned char* regs;
  uint32_t alive = 0;
  int at_barrier = -1;  // its number
  bool parked = false;  // no group of its lanes can go on
  bool again = false;   // the instruction could not run yet
  std::vector<Group> groups;
  std::vector<Copy> copies;
  int committed[32] = {};
  uint32_t epoch = 1;  // counts the meetings of its lanes

  // of programs with clocks
  uint32_t clock = 0;
  Clocks seen, fenced;              // fenced: also by what reads asynchronously
  Clocks met_later, fenced_later;   // what only the lanes of `met` have seen
  uint32_t met = 0;
  std::vector<Arrival> arrivals;
  // of programs with wgmma; by register: place / 64
  std::vector<Product> products;
  int product_groups = 0;                   // committed
  std::vector<uint8_t> sums_busy, a_busy;   // products in flight
  std::vector<uint32_t> written;            // the wgmma.fence before the last write
  uint32_t fences = 1;
  size_t collective = 0;                    // instructions that its warpgroup has run together
  int registers = 0;                        // of a thread

  void meet() {
    join(seen, met_later), join(fenced, fenced_later);
    met = 0;
  }
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

inline int thread_of(const Warp& w, int lane) { return w.number * 32 + lane; }

struct Touch {                       // who used 2 bytes of shared memory last
  uint32_t write_time, read_time;    // barriers of the block
  uint32_t write_epoch, read_epoch;  // meetings of the warp
  int16_t writer, reader;            // threads; reader < 0: several, see check_races
};

// Shared memory of programs with clocks, 2 bytes
struct LastWrite {
  uint32_t clock, epoch;
  int16_t thread;
};
struct LastRead {  // of a warp
  uint32_t clock, epoch;
  int16_t thread;  // -1: of several lanes
};

struct MBarrier {
  uint32_t expected = 0, pending = 0, phase = 0;
  int64_t bytes = 0;  // still to come
  Clocks seen, fenced, seen_before, fenced_before;  // of this phase, of the one that is complete
};
struct NamedBarrier {
  int arrived = 0, expected = 0;
  Clocks seen, fenced;
};
struct Collective {  // what a warpgroup runs together
  const Inst* inst;
  uint64_t a, b;
};

struct Block {
  Program* program;
  Dim grid, block, index;
  const unsigned char* params;
  std::vector<unsigned char> smem, state;
  std::vector<Touch> touched;
  std::vector<Warp> warps;
  std::vector<unsigned char> registers;
  uint32_t time = 1, start = 1;  // start: of its clocks
  uint64_t random = 1;
  int exited = 0;    // threads
  int64_t left = 0;  // instructions of warps that the block may still run
  NamedBarrier barriers[16];
  std::map<uint32_t, MBarrier> mbarriers;  // by shared address
  std::vector<LastWrite> writes;
  std::vector<LastRead> reads;        // [2 bytes][warp]
  std::vector<uint16_t> async_reads;  // by wgmma in flight, of 16 bytes
  std::vector<std::vector<Collective>> collectives;  // by warpgroup
  int free_registers = 0;

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
  void land(Warp& w, const Copy& c, uint32_t clock);
  // order.cpp: two accesses of shared memory with a write among them, and nothing between that orders them, are a fault
  void prepare_order();
  void start_order();
  void order(Warp& w, const Inst& i, int lane, uint64_t offset, int bytes, bool write);
  void order_landing(const Warp& w, int lane, uint64_t offset, int bytes, uint32_t clock);
  void order_async_read(Warp& w, const Inst& i, uint64_t offset, int bytes);
  void note_async_read(const Warp& w, uint64_t offset, int bytes);
  void release(Warp& w, Clocks& seen, Clocks& fenced);
  void arrive(Warp& w, const Inst& i, bool waits);  // at a barrier of the block
  // hopper.cpp
  void start_hopper();
  void use_registers(Warp& w, const Inst& i, size_t pc);
  bool something_lands(bool all);  // of what runs asynchronously, at random or all; whether a warp may go on by it
  void finish(Warp& w, const Inst& i);  // a warp that exits
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
