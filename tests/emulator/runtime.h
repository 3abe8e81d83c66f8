// What the emulator's own files share. Kernels see emulator.h only.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "emulator.h"

namespace emu {

struct Copy {  // one cp.async
  unsigned char* dst;
  const unsigned char* src;
  int bytes;
};

struct Access {  // one ordinary access of shared memory, kept until the warp's next meeting point
  const void* site;
  uint32_t offset;
  uint8_t bytes;
  bool write;
};

struct Fiber {
  void* sp;
  int id, lane, warp;
  bool alive;
  std::vector<std::vector<Copy>> groups;  // committed cp.async groups, oldest first
  std::vector<Copy> open;
  std::vector<Access> log;
};

struct Meeting {  // lanes of a warp that wait for each other at one collective
  int kind = 0, arrived = 0;
  unsigned mask = 0;
  void* arg[32];
};

struct Warp {
  Meeting meeting[4];
  uint32_t epoch = 0;  // counts __syncwarp: orders the accesses of one warp
  unsigned alive = 0, ready = 0, at_barrier = 0;
  int rank = 0;  // place in the scheduler's order
};

struct Block {
  unsigned char* smem = nullptr;
  size_t smem_bytes = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> by_rank;
  uint64_t index = 0;  // of the block in its grid
  uint32_t ready_ranks = 0;
  int alive = 0, waiting = 0;
  const void* barrier_site = nullptr;
  uint32_t epoch = 1;  // counts __syncthreads
  std::string error;
};

struct Counters {
  uint64_t mma = 0, ldmatrix = 0, ldmatrix_conflicts = 0, cp_async = 0, barriers = 0, switches = 0;
  uint64_t blocks = 0, threads = 0, shared_bytes = 0;  // of the first launch; threads and bytes per block
  uint64_t accesses = 0, access_conflicts = 0;  // ordinary shared memory: warp-wide accesses, extra wavefronts
};

enum class Schedule { ordered, reversed, lockstep, random };

struct Options {
  Schedule schedule = Schedule::ordered;
  uint64_t seed = 0;
  bool banks = false;  // count bank conflicts of ordinary accesses
  uint64_t first_block = 0, last_block = ~0ull;  // only these blocks of a grid run
  bool truncate = false;  // sums of mma are cut off as on a GPU (tensor_sum.h), not rounded to nearest
};

struct Buffer {  // global memory a test told the emulator about
  const unsigned char *begin, *end;
  size_t guard;  // bytes before and after that no kernel may touch
  bool writable;
  std::string name;
  std::vector<uint64_t> writer;  // per 2 bytes: 1 + the thread that wrote them in this launch
};

extern Block block;
extern Fiber* current;
extern Options options;
extern Counters counters;
extern std::vector<Buffer> buffers;
extern bool instrumented;  // a kernel file of this process was compiled for the race check
extern std::map<const void*, std::pair<uint64_t, uint64_t>> sites;  // accesses and extra wavefronts by source place

[[noreturn]] void fail(const std::string& message);

// checks.cpp
constexpr size_t kSmemGuard = 16 << 10;  // bytes around dynamic shared memory that stay ours
enum class Mark { data, in_flight };  // in_flight: cp.async has been issued, not waited for
void check_reset(bool new_launch);
void check_shared(const void* p, int bytes, bool write, Mark mark = Mark::data);
void check_global(const void* p, int bytes, bool write);
void require_shared(const void* p, int bytes, const char* what);
void log_access(const void* site, const void* p, int bytes, bool write);
void flush_banks(Warp& warp);

// scheduler.cpp
using Op = void (*)(void** args);
void collective(int kind, unsigned mask, void* arg, Op op);  // the last lane to arrive runs op for all

}  // namespace emu
