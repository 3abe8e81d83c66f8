// Blocks, warps and memory: who runs next, who waits for whom, what an access may touch.
#include <cxxabi.h>

#include <algorithm>

#include "ptx.h"

namespace ptx_run {

Options options;
Totals totals;

namespace {

std::vector<Range> ranges;
uint32_t now = 1;  // counts meetings of warps

std::string hex(uint64_t v) {
  char s[24];
  std::snprintf(s, sizeof s, "0x%llx", static_cast<unsigned long long>(v));
  return s;
}

Range* range_of(uint64_t address, int bytes) {
  static size_t last = 0;
  for (size_t k = 0; k < ranges.size(); ++k) {
    Range& r = ranges[(last + k) % ranges.size()];
    if (address >= r.begin && address + static_cast<uint64_t>(bytes) <= r.begin + r.bytes) {
      last = (last + k) % ranges.size();
      return &r;
    }
  }
  return nullptr;
}

}  // namespace

uint32_t tick() { return ++now; }

Range& watch(const void* p, size_t bytes, bool writable, const char* name) {
  Range r{};
  r.begin = reinterpret_cast<uint64_t>(p), r.bytes = bytes, r.writable = writable, r.name = name;
  if (writable) r.writer.assign(bytes / 2 + 1, 0), r.defined.assign(bytes / 2 + 1, false);
  ranges.push_back(std::move(r));
  return ranges.back();
}
void watch_lazily(const void* p, size_t bytes, bool writable, const char* name,
                  std::function<void(uint64_t, size_t)> fill) {
  Range& r = watch(p, bytes, false, name);
  r.writable = writable, r.fill = std::move(fill), r.filled.assign(bytes / kPage + 1, false);
}
const Range* watched(const std::string& name) {
  for (const Range& r : ranges)
    if (r.name == name) return &r;
  return nullptr;
}
void unwatch() { ranges.clear(); }

void Block::fault(const Warp& w, const Inst& i, int lane, const std::string& what) const {
  int status;
  char* plain = abi::__cxa_demangle(program->name.c_str(), nullptr, nullptr, &status);
  std::string s = status ? program->name : plain;
  std::free(plain);
  const auto file = program->files->find(i.file);
  s += " at " + (file == program->files->end() ? "?" : file->second) + ":" + std::to_string(i.line) + ", block (" +
       std::to_string(index.x) + ", " + std::to_string(index.y) + ") thread " + std::to_string(thread_of(w, lane)) +
       ": " + what + " [" + std::string(i.text) + "]";
  throw Fault(s);
}

unsigned char* Block::shared(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write) {
  const uint64_t offset = address - kSharedBase;
  if (address < kSharedBase || offset + static_cast<uint64_t>(bytes) > smem.size())
    fault(w, i, lane,
          "byte " + std::to_string(static_cast<int64_t>(offset)) + " of " + std::to_string(smem.size()) +
              " of shared memory");
  if (address % static_cast<uint64_t>(bytes)) fault(w, i, lane, "misaligned shared address " + hex(address));
  unsigned char* s = &state[offset];
  if (write) {
    for (int k = 0; k < bytes; ++k)
      if (s[k] == kInFlight) fault(w, i, lane, "write to a cp.async destination before its wait");
      else if (s[k] == kBarrier) fault(w, i, lane, "write to an mbarrier");
    if (program->clocks)
      for (uint64_t k = offset / 16; k <= (offset + static_cast<uint64_t>(bytes) - 1) / 16; ++k)
        if (async_reads[k]) fault(w, i, lane, "write to shared memory that a wgmma in flight reads");
    std::memset(s, kDefined, static_cast<size_t>(bytes));
  } else {
    for (int k = 0; k < bytes; ++k)
      if (s[k] != kDefined) {
        if (s[k] == kInFlight) fault(w, i, lane, "read of a cp.async destination before its wait");
        if (s[k] == kBarrier) fault(w, i, lane, "read of an mbarrier");
        if (options.undefined_reads)
          fault(w, i, lane,
                "read of shared byte " + std::to_string(offset + static_cast<uint64_t>(k)) + ", never written");
      }
  }
  if (options.races) order(w, i, lane, offset, bytes, write);
  return &smem[offset];
}

unsigned char* Block::global(Warp& w, const Inst& i, int lane, uint64_t address, int bytes, bool write) {
  Range* r = range_of(address, bytes);
  if (!r) {
    std::string near;
    for (const Range& k : ranges) {
      const auto d = static_cast<int64_t>(address - k.begin);
      if (d > -(1 << 20) && d < static_cast<int64_t>(k.bytes) + (1 << 20))
        near += " (byte " + std::to_string(d) + " of " + std::to_string(k.bytes) + " of " + k.name + ")";
    }
    fault(w, i, lane, "global address " + hex(address) + near);
  }
  if (address % static_cast<uint64_t>(bytes)) fault(w, i, lane, "misaligned global address " + hex(address));
  const uint32_t threads = block.x * block.y * block.z;
  const auto number = (static_cast<uint64_t>(index.z) * grid.y + index.y) * grid.x + index.x;
  const auto me = static_cast<uint32_t>(1 + number * threads + static_cast<uint64_t>(thread_of(w, lane)));
  const size_t first = (address - r->begin) / 2, end = (address - r->begin + static_cast<size_t>(bytes) + 1) / 2;
  if (r->fill)
    for (uint64_t page = 2 * first / kPage; page <= (2 * end - 1) / kPage; ++page)
      if (!r->filled[page]) {
        r->filled[page] = true;
        r->fill(page * kPage, std::min<size_t>(kPage, r->bytes - page * kPage));
      }
  if (write) {
    if (!r->writable) fault(w, i, lane, "write to " + r->name);
    for (size_t k = first; k < end; ++k) {
      uint32_t& writer = r->fill ? r->writers[k] : r->writer[k];
      if (writer && writer != me)
        fault(w, i, lane, "second thread to write byte " + std::to_string(2 * k) + " of " + r->name);
      writer = me;
      if (!r->fill) r->defined[k] = true;
    }
  } else if (r->writable && !r->fill) {
    for (size_t k = first; k < end; ++k) {
      if (!r->defined[k])
        fault(w, i, lane, "read of byte " + std::to_string(2 * k) + " of " + r->name + ", never written");
      const uint32_t writer = r->writer[k];  // in this launch
      if (writer && (i.read_only || (writer - 1) / threads != (me - 1) / threads))
        fault(w, i, lane,
              "read of byte " + std::to_string(2 * k) + " of " + r->name + " as if nothing wrote it, which thread " +
                  std::to_string((writer - 1) % threads) + " of block " + std::to_string((writer - 1) / threads) +
                  " did");
    }
  }
  return reinterpret_cast<unsigned char*>(address);
}

void Block::copy(Warp& w, const Inst& i, int lane, uint64_t dst, uint64_t src, int bytes) {
  Copy c{static_cast<uint32_t>(dst), bytes, lane, w.committed[lane], 0, {}};
  std::memcpy(c.data, global(w, i, lane, src, bytes, false), static_cast<size_t>(bytes));
  unsigned char* to = shared(w, i, lane, dst, bytes, true);
  if (options.seed && draw() % 4 == 0) std::memcpy(to, c.data, static_cast<size_t>(bytes));  // early
  else std::memset(to, 0xff, static_cast<size_t>(bytes));
  std::memset(&state[dst - kSharedBase], kInFlight, static_cast<size_t>(bytes));
  w.copies.push_back(c);
}

void Block::land(Warp& w, const Copy& c, uint32_t clock) {
  const uint32_t offset = c.dst - static_cast<uint32_t>(kSharedBase);
  std::memcpy(&smem[offset], c.data, static_cast<size_t>(c.bytes));
  std::memset(&state[offset], kDefined, static_cast<size_t>(c.bytes));
  if (options.races) order_landing(w, c.lane, offset, c.bytes, clock);
}

// All but the newest groups_left groups; -1: those not committed, too.
void Block::land(Warp& w, uint32_t lanes, int groups_left) {
  size_t kept = 0;
  for (Copy& c : w.copies) {
    if (lanes >> c.lane & 1 && c.group < w.committed[c.lane] - groups_left) land(w, c, c.clock ? c.clock : w.clock);
    else w.copies[kept++] = c;
  }
  w.copies.resize(kept);
}

namespace {

struct CutShort {};

// Runs a group of lanes until it waits, ends, splits up, or its turn is over.
void run_group(Block& b, Warp& w, size_t number, int64_t* budget) {
  Program& program = *b.program;
  const Inst* const code = program.code.data();
  uint64_t* const hits = program.hits.data();
  int pc = w.groups[number].pc;
  uint32_t lanes = w.groups[number].lanes;
  const auto save = [&](bool waits) { w.groups[number] = {pc, lanes, waits}; };
  const auto park = [&] { w.groups[number] = {pc, lanes, false, true}, w.parked = false; };
  for (; *budget > 0; --*budget) {
    if (w.groups.size() > 1) {
      bool behind = false;
      for (size_t k = 0; k < w.groups.size(); ++k) {
        if (k == number) continue;
        if (w.groups[k].pc == pc) {  // they meet
          lanes |= w.groups[k].lanes;
          w.groups.erase(w.groups.begin() + static_cast<long>(k));
          if (k < number) --number;
          --k;
        } else {
          behind |= !w.groups[k].waits && !w.groups[k].parked && w.groups[k].pc < pc;
        }
      }
      if (behind && options.seed == 0) return save(false);
    }
    const Inst& i = code[pc];
    totals.met += hits[pc]++ == 0, ++totals.instructions;
    if (--b.left < 0) {
      if (options.sample) throw CutShort();
      b.fault(w, i, __builtin_ctz(lanes), "the block does not end");
    }
    uint32_t active = lanes;
    if (i.guard >= 0) {
      const uint32_t p = w.predicate(static_cast<uint32_t>(i.guard));
      active &= i.negate ? ~p : p;
    }
    if (!program.used.empty() && active) b.use_registers(w, i, static_cast<size_t>(pc));
    switch (i.kind) {
      case Kind::plain:
        if (active) i.run(w, i, active);
        ++pc;
        if (w.parked) return park();
        break;
      case Kind::branch:
        if (active == lanes) {
          pc = i.target;
        } else if (active == 0) {
          ++pc;
        } else {
          w.groups.push_back({i.target, active, false});
          lanes &= ~active, ++pc;
          if (options.seed) return save(false);
        }
        break;
      case Kind::exit:
        for (const Copy& c : w.copies)
          if (active >> c.lane & 1) b.fault(w, i, c.lane, "exit with a cp.async in flight");
        b.finish(w, i);
        w.alive &= ~active, lanes &= ~active, ++pc;
        b.exited += __builtin_popcount(active);
        if (lanes) save(false);
        else w.groups.erase(w.groups.begin() + static_cast<long>(number));
        for (Group& g : w.groups) g.waits = false;  // they may be all that is left
        return;
      case Kind::aligned:
      case Kind::members: {
        if (active != lanes) b.fault(w, i, 0, "guarded meeting of lanes");
        uint32_t wanted = w.alive;
        if (i.kind == Kind::members) {
          const uint32_t* m = w.at<uint32_t>(i.op[i.opcode->operands.size() - 1]);
          wanted = 0;
          for (int l = 0; l < 32; ++l)
            if (lanes >> l & 1) {
              if (!(m[l] >> l & 1)) b.fault(w, i, l, "not a member of its own mask");
              wanted |= m[l];
            }
          wanted &= w.alive;
        }
        if ((lanes & wanted) != wanted) return save(true);
        i.run(w, i, lanes);
        if (!w.again) ++pc;
        w.again = false;
        if (w.parked) return park();
        if (w.at_barrier >= 0) return save(false);
        break;
      }
    }
  }
  save(false);
}

void run_warp(Block& b, Warp& w, int64_t budget) {
  while (budget > 0 && w.alive && w.at_barrier < 0 && !w.parked) {
    size_t chosen = w.groups.size(), ready = 0;
    bool parked = false;
    for (size_t k = 0; k < w.groups.size(); ++k) {
      parked |= w.groups[k].parked;
      if (w.groups[k].waits || w.groups[k].parked) continue;
      ++ready;
      if (options.seed ? b.draw() % ready == 0 : chosen == w.groups.size() || w.groups[k].pc < w.groups[chosen].pc)
        chosen = k;
    }
    if (ready == 0 && parked) return void(w.parked = true);
    if (ready == 0) {
      const Group& g = w.groups[0];
      b.fault(w, b.program->code[static_cast<size_t>(g.pc)], __builtin_ctz(g.lanes),
              "part of the warp waits here (lanes " + hex(g.lanes) + "), the rest elsewhere: [" +
                  std::string(b.program->code[static_cast<size_t>(w.groups[1].pc)].text) + "] in line " +
                  std::to_string(b.program->code[static_cast<size_t>(w.groups[1].pc)].line));
    }
    if (options.seed && w.groups.size() > 1) {  // lanes that have parted take turns
      int64_t turn = std::min<int64_t>(budget, 1 + static_cast<int64_t>(b.draw() % 32));
      budget -= turn;
      run_group(b, w, chosen, &turn);
      budget += turn;
    } else {
      run_group(b, w, chosen, &budget);
    }
  }
}

void run_block(Block& b) {
  const unsigned threads = b.block.x * b.block.y * b.block.z;
  std::fill(b.smem.begin(), b.smem.end(), 0xff);
  std::fill(b.state.begin(), b.state.end(), kUndefined);
  b.exited = 0, b.left = options.sample ? 3000000 : 200000000;
  b.time = tick();
  for (Warp& w : b.warps) {
    const int lanes = std::min(32, static_cast<int>(threads) - 32 * w.number);
    w.alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    w.at_barrier = -1, w.parked = w.again = false;
    w.groups.assign(1, {0, w.alive, false});
    w.copies.clear();
    std::fill(w.committed, w.committed + 32, 0);
    w.epoch = 1;
    for (const auto& [place, name] : b.program->specials) {
      for (int l = 0; l < 32; ++l) {
        const auto t = static_cast<unsigned>(thread_of(w, l));
        const Dim at{t % b.block.x, t / b.block.x % b.block.y, t / b.block.x / b.block.y};
        const Dim& d = name[1] == 't'                    ? at
                       : name.compare(1, 4, "ntid") == 0 ? b.block
                       : name[1] == 'c'                  ? b.index
                                                         : b.grid;
        w.at<uint32_t>(place)[l] = name == "%laneid"    ? static_cast<unsigned>(l)
                                   : name.back() == 'x' ? d.x
                                   : name.back() == 'y' ? d.y
                                                        : d.z;
      }
    }
  }
  for (NamedBarrier& one : b.barriers) one = {};
  if (b.program->clocks) b.start_order(), b.start_hopper();
  for (;;) {
    Warp* chosen = nullptr;
    uint64_t ready = 0;
    bool alive = false;
    for (Warp& w : b.warps) {
      alive |= w.alive != 0;
      if (!w.alive || w.at_barrier >= 0 || w.parked) continue;
      ++ready;
      if (options.seed ? b.draw() % ready == 0 : !chosen) chosen = &w;
    }
    if (!alive) return;
    if (b.program->clocks && options.seed) b.something_lands(false);
    if (chosen) {
      run_warp(b, *chosen, options.seed ? 1 + static_cast<int64_t>(b.draw() % 200) : INT64_MAX);
      continue;
    }
    if (b.program->clocks && b.something_lands(true)) continue;
    for (Warp& w : b.warps) {
      if (!w.alive) continue;
      const int pc = w.groups[0].pc;
      b.fault(w, b.program->code[static_cast<size_t>(std::max(0, pc - 1))], 0,
              w.parked || b.program->clocks ? "all warps wait" : "barrier after threads have exited");
    }
  }
}

}  // namespace

void run_grid(Program& program, Dim grid, Dim block, size_t smem, const unsigned char* params) {
  const size_t threads = static_cast<size_t>(block.x) * block.y * block.z, warps = (threads + 31) / 32;
  static Block b;  // its memory is used again
  b.program = &program, b.grid = grid, b.block = block, b.params = params;
  b.smem.resize(smem), b.state.resize(smem);
  b.random = options.seed * 0x9e3779b97f4a7c15 + 1;
  const size_t bytes = (program.register_bytes + 63) / 64 * 64;
  b.registers.resize(warps * bytes + 64);
  b.warps.resize(warps);
  unsigned char* at =
      reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(b.registers.data()) + 63) / 64 * 64);
  for (size_t n = 0; n < warps; ++n, at += bytes) {
    Warp& w = b.warps[n];
    w.block = &b, w.number = static_cast<int>(n), w.regs = at;
    for (size_t k = 0; k + 4 <= bytes; k += 4) {
      const uint32_t poison = 0x7fe5a5a5;
      std::memcpy(at + k, &poison, 4);
    }
    for (const auto& c : program.constants) {
      if (c.bytes == 0) w.predicate(c.place) = static_cast<uint32_t>(c.value);
      for (int l = 0; l < 32 && c.bytes; ++l)
        std::memcpy(at + c.place + l * c.bytes, &c.value, static_cast<size_t>(c.bytes));
    }
  }
  b.prepare_order();
  for (Range& r : ranges) std::fill(r.writer.begin(), r.writer.end(), 0);
  ++totals.launches;
  const auto run = [&](uint64_t n) {
    b.index = {static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y),
               static_cast<unsigned>(n / grid.x / grid.y)};
    ++totals.blocks;
    try {
      run_block(b);
    } catch (const CutShort&) {
    }
  };
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z,
                 sample = static_cast<uint64_t>(options.sample);
  if (sample == 0 || 3 * sample >= blocks) {
    for (uint64_t n = 0; n < blocks; ++n) run(n);
  } else {
    for (uint64_t n = 0; n < sample; ++n) run(n), run(blocks - 1 - n), run(sample + b.draw() % (blocks - 2 * sample));
  }
}

}  // namespace ptx_run
