// What Hopper has besides (sm_90a): wgmma, barriers in shared memory, the proxies that memory is seen through, registers
// that change hands. What runs asynchronously runs here at a random time, or as late as it may.
#include "numbers.h"
#include "ptx.h"

namespace ptx_run {
namespace {

constexpr uint32_t kWarpgroup = 4;  // warps

template <class T>
T agreed(Warp& w, const Inst& i, uint32_t place, const char* what) {
  const T* v = w.at<T>(place);
  for (int l = 1; l < 32; ++l)
    if (v[l] != v[0]) w.block->fault(w, i, l, std::string(what) + " differs between lanes");
  return v[0];
}

// The warps of a warpgroup run the same such instructions, one after the other.
void together(Warp& w, const Inst& i, uint64_t a = 0, uint64_t b = 0) {
  Block& block = *w.block;
  if (w.alive != ~0u || block.warps.size() % kWarpgroup) block.fault(w, i, 0, "not all threads of a warpgroup are there");
  auto& log = block.collectives[static_cast<size_t>(w.number) / kWarpgroup];
  if (log.size() == w.collective) log.push_back({&i, a, b});
  const Collective& one = log[w.collective++];
  if (one.inst != &i) block.fault(w, i, 0, "another warp of the warpgroup is at [" + std::string(one.inst->text.substr(0, 60)) + "]");
  if (one.a != a || one.b != b) block.fault(w, i, 0, "descriptors differ between warps of the warpgroup");
}

// ---- barriers in shared memory ----

void wake(Block& b) {
  for (Warp& w : b.warps) {
    w.parked = false;
    for (Group& g : w.groups) g.parked = false;
  }
}
void complete(Block& b, MBarrier& m) {
  if (m.pending || m.bytes) return;
  ++m.phase, m.pending = m.expected;
  m.seen_before.swap(m.seen), m.fenced_before.swap(m.fenced);
  m.seen.clear(), m.fenced.clear();
  wake(b);
}
MBarrier& barrier_at(Warp& w, const Inst& i, int lane, uint64_t address) {
  Block& b = *w.block;
  const auto found = b.mbarriers.find(static_cast<uint32_t>(address));
  if (found == b.mbarriers.end()) b.fault(w, i, lane, "no mbarrier there");
  const LastWrite& t = b.writes[(address - kSharedBase) / 2];
  if (t.clock > w.seen[static_cast<size_t>(t.thread / 32)]) b.fault(w, i, lane, "race: the mbarrier's mbarrier.init");
  return found->second;
}
void arrive(Warp& w, const Inst& i, int lane, MBarrier& m, uint32_t count) {
  if (count > m.pending) w.block->fault(w, i, lane, "more arrivals than the mbarrier expects");
  m.pending -= count;
  complete(*w.block, m);
}

template <class F>
void each_lane(uint32_t lanes, F f) {
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) f(l);
}

void init(Warp& w, const Inst& i, uint32_t lanes) {
  each_lane(lanes, [&](int l) {
    Block& b = *w.block;
    const uint64_t address = w.address(i, i.op[0], l);
    const uint32_t count = w.at<uint32_t>(i.op[1])[l];
    if (count < 1 || count >= 1 << 20) b.fault(w, i, l, "mbarrier for " + std::to_string(count) + " arrivals");
    b.shared(w, i, l, address, 8, true);
    std::memset(&b.state[address - kSharedBase], kBarrier, 8);
    MBarrier& m = b.mbarriers[static_cast<uint32_t>(address)] = {};
    m.expected = m.pending = count;
  });
}
void inval(Warp& w, const Inst& i, uint32_t lanes) {
  each_lane(lanes, [&](int l) {
    const uint64_t address = w.address(i, i.op[0], l);
    barrier_at(w, i, l, address);
    w.block->mbarriers.erase(static_cast<uint32_t>(address));
    std::memset(&w.block->state[address - kSharedBase], kUndefined, 8);
  });
}
template <bool counted, bool expects, bool arrives>
void arrive_lanes(Warp& w, const Inst& i, uint32_t lanes) {
  constexpr int address = arrives ? 1 : 0;  // behind the state, which no wait here takes
  Clocks seen, fenced;
  if (arrives) w.block->release(w, seen, fenced);
  each_lane(lanes, [&](int l) {
    MBarrier& m = barrier_at(w, i, l, w.address(i, i.op[address], l));
    const uint32_t number = counted || expects ? w.at<uint32_t>(i.op[address + 1])[l] : 1;
    if (expects) m.bytes += number;
    if (!arrives) return;
    join(m.seen, seen), join(m.fenced, fenced);
    arrive(w, i, l, m, counted ? number : 1);
  });
}
void wait(Warp& w, const Inst& i, uint32_t lanes) {
  uint32_t& p = w.predicate(i.op[0]);
  each_lane(lanes, [&](int l) {
    MBarrier& m = barrier_at(w, i, l, w.address(i, i.op[1], l));
    const bool done = (m.phase & 1) != (w.at<uint32_t>(i.op[2])[l] & 1);
    p = (p & ~(1u << l)) | static_cast<uint32_t>(done) << l;
    if (!done) return void(w.parked = true);
    join(w.met_later, m.seen_before), join(w.fenced_later, m.fenced_before);
    w.met |= 1u << l;
  });
  if ((w.met & w.alive) == w.alive) w.meet();  // else the other lanes know nothing of it before they meet these
}

template <bool counted>
void arrive_after_copies(Warp& w, const Inst& i, uint32_t lanes) {
  Arrival one{&i, 0, 0, w.clock, {}, {}};
  w.block->release(w, one.seen, one.fenced);
  each_lane(lanes, [&](int l) {
    one.lane = l, one.barrier = static_cast<uint32_t>(w.address(i, i.op[0], l));
    MBarrier& m = barrier_at(w, i, l, one.barrier);
    if (counted) ++m.pending;
    w.arrivals.push_back(one);
  });
  for (Copy& c : w.copies)
    if (lanes >> c.lane & 1 && c.clock == 0) c.clock = one.clock;
}
// A lane's copies before its arrival land, and it arrives.
void arrive(Warp& w, const Arrival& one) {
  Block& b = *w.block;
  size_t kept = 0;
  for (Copy& c : w.copies) {
    if (c.lane == one.lane && c.clock && c.clock <= one.clock) b.land(w, c, c.clock);
    else w.copies[kept++] = c;
  }
  w.copies.resize(kept);
  MBarrier& m = barrier_at(w, *one.inst, one.lane, one.barrier);
  join(m.seen, one.seen), join(m.fenced, one.fenced);
  arrive(w, *one.inst, one.lane, m, 1);
}

// ---- wgmma ----

uint64_t element(uint64_t descriptor, int row, int k) {  // its place in shared memory; no swizzle, k first
  const uint64_t start = (descriptor & 0x3fff) << 4, lead = (descriptor >> 16 & 0x3fff) << 4,
                 stride = (descriptor >> 32 & 0x3fff) << 4;
  return start - kSharedBase + static_cast<uint64_t>(k / 8) * lead + static_cast<uint64_t>(row / 8) * stride +
         static_cast<uint64_t>(row % 8 * 16 + k % 8 * 2);
}
template <class F>
void each_piece(uint64_t descriptor, int first, int rows, F f) {  // of 16 bytes
  for (int k = 0; k < 16; k += 8)
    for (int r = first; r < first + rows; ++r) f(element(descriptor, r, k));
}
int columns_of(const Inst& i) { return 2 * static_cast<int>(i.sums.size()); }
int first_row(const Warp& w) { return w.number % static_cast<int>(kWarpgroup) * 16; }

float (*converter(const Inst& i))(uint16_t) {
  return i.text.find(".bf16") == std::string_view::npos ? half_to_float : bfloat_to_float;
}

void run(Warp& w, Product& p) {
  const Inst& i = *p.inst;
  const int columns = columns_of(i);
  const auto convert = converter(i);
  const float scale_a = static_cast<float>(p.scale_a), scale_b = static_cast<float>(p.scale_b);
  const auto read = [&](uint64_t place) {
    uint16_t v;
    std::memcpy(&v, &w.block->smem[place], 2);
    return convert(v);
  };
  float a[16][16];
  for (int r = 0; r < 4; ++r)
    for (int l = 0; l < 32; ++l)
      for (int h = 0; h < 2; ++h) {
        const int row = l / 4 + r % 2 * 8, k = l % 4 * 2 + h + r / 2 * 8;
        a[row][k] = scale_a * (p.a ? read(element(p.a, first_row(w) + row, k))
                                   : convert(static_cast<uint16_t>(w.at<uint32_t>(i.op[r])[l] >> 16 * h)));
      }
  float d[16][256];
  for (size_t s = 0; s < i.sums.size(); ++s)
    for (int l = 0; l < 32; ++l)
      d[l / 4 + s / 2 % 2 * 8][s / 4 * 8 + static_cast<size_t>(l % 4 * 2) + s % 2] = p.adds ? w.at<float>(i.sums[s])[l] : 0;
  for (int k = 0; k < 16; ++k) {
    float b[256];
    for (int n = 0; n < columns; ++n) b[n] = scale_b * read(element(p.b, n, k));
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < columns; ++n) d[m][n] = __builtin_fmaf(a[m][k], b[n], d[m][n]);
  }
  for (size_t s = 0; s < i.sums.size(); ++s)
    for (int l = 0; l < 32; ++l)
      w.at<float>(i.sums[s])[l] = d[l / 4 + s / 2 % 2 * 8][s / 4 * 8 + static_cast<size_t>(l % 4 * 2) + s % 2];
  p.done = true;
  ++totals.mma;
}

// from_shared: operands a, b, adds, signs of a and b, whether a and b are transposed; else four registers in place of a
template <bool from_shared>
void multiply(Warp& w, const Inst& i, uint32_t) {
  Block& b = *w.block;
  constexpr int first = from_shared ? 1 : 4;
  Product p{&i, 0, agreed<uint64_t>(w, i, i.op[first], "descriptor"), (w.predicate(i.op[first + 1]) & 1) != 0,
            static_cast<int32_t>(i.op[first + 2]), static_cast<int32_t>(i.op[first + 3]), -1, false};
  if (from_shared) p.a = agreed<uint64_t>(w, i, i.op[0], "descriptor");
  together(w, i, p.a, p.b);
  for (const uint64_t one : {p.a, p.b})
    if (one >> 46) b.fault(w, i, 0, "a descriptor with a swizzle or a base offset, which are not modelled");
  if (i.op[first + 4] || (from_shared && i.op[first + 5])) b.fault(w, i, 0, "transposed operands are not modelled");
  for (const int scale : {p.scale_a, p.scale_b})
    if (scale != 1 && scale != -1) b.fault(w, i, 0, "a sign other than 1 and -1");
  const auto unfenced = [&](uint32_t place) {
    if (w.written[place / 64] == w.fences) b.fault(w, i, 0, "a register was written after the last wgmma.fence");
  };
  for (const uint32_t sum : i.sums) unfenced(sum);
  for (int r = 0; r < 4 && !from_shared; ++r) {
    unfenced(i.op[r]);
    if (w.sums_busy[i.op[r] / 64]) b.fault(w, i, 0, "A is a sum of a wgmma in flight");
    ++w.a_busy[i.op[r] / 64];
  }
  for (const Product& other : w.products)
    if (other.inst->sums.size() != i.sums.size())
      for (const uint32_t sum : i.sums)
        for (const uint32_t theirs : other.inst->sums)
          if (sum == theirs) b.fault(w, i, 0, "sums of a wgmma of another shape in flight");
  for (const uint32_t sum : i.sums) ++w.sums_busy[sum / 64];
  const auto read = [&](uint64_t offset) {
    if (offset + 16 > b.smem.size()) b.fault(w, i, 0, "byte " + std::to_string(static_cast<int64_t>(offset)) + " of shared memory");
    for (int k = 0; k < 16; ++k)
      if (b.state[offset + static_cast<uint64_t>(k)] != kDefined)
        b.fault(w, i, 0, "wgmma reads shared byte " + std::to_string(offset + static_cast<uint64_t>(k)) +
                             (b.state[offset + static_cast<uint64_t>(k)] == kInFlight ? ", a cp.async destination before its wait" : ", never written"));
    if (options.races) b.order_async_read(w, i, offset, 16);
    ++b.async_reads[offset / 16];
  };
  each_piece(p.b, 0, columns_of(i), read);
  if (from_shared) each_piece(p.a, first_row(w), 16, read);
  w.products.push_back(p);
}
void wgmma_fence(Warp& w, const Inst& i, uint32_t) { together(w, i), ++w.fences; }
void wgmma_commit(Warp& w, const Inst& i, uint32_t) {
  together(w, i);
  for (Product& p : w.products)
    if (p.group < 0) p.group = w.product_groups;
  ++w.product_groups;
}
void wgmma_wait(Warp& w, const Inst& i, uint32_t) {
  together(w, i);
  Block& b = *w.block;
  size_t kept = 0;
  for (Product& p : w.products) {
    if (p.group < 0 || p.group >= w.product_groups - static_cast<int>(i.op[0])) {
      w.products[kept++] = p;
      continue;
    }
    if (!p.done) run(w, p);
    for (const uint32_t sum : p.inst->sums) --w.sums_busy[sum / 64];
    for (int r = 0; r < 4 && !p.a; ++r) --w.a_busy[p.inst->op[r] / 64];
    const auto free = [&](uint64_t offset) {
      --b.async_reads[offset / 16];
      if (options.races) b.note_async_read(w, offset, 16);
    };
    each_piece(p.b, 0, columns_of(*p.inst), free);
    if (p.a) each_piece(p.a, first_row(w), 16, free);
  }
  w.products.resize(kept);
}

// ---- registers that change hands ----

template <bool more>
void set_registers(Warp& w, const Inst& i, uint32_t) {
  Block& b = *w.block;
  const int wanted = static_cast<int>(i.op[0]), change = 32 * (wanted - w.registers);
  if (wanted % 8 || wanted < 24 || wanted > 256) b.fault(w, i, 0, "a multiple of 8 from 24 to 256 is allowed");
  if (more ? change < 0 : change > 0)
    b.fault(w, i, 0, "a thread has " + std::to_string(w.registers) + " registers");
  if (change > b.free_registers) {  // waits until other warps give theirs away
    w.parked = w.again = true;
    return;
  }
  together(w, i);
  b.free_registers -= change, w.registers = wanted;
  if (!more) wake(b);
}

}  // namespace

void Block::start_hopper() {
  mbarriers.clear();
  async_reads.assign(smem.size() / 16 + 1, 0);
  collectives.assign(warps.size() / kWarpgroup + 1, {});
  // what ptxas gives a thread where setmaxnreg is used: all that there are
  const int registers = std::min(248, 65536 / static_cast<int>(32 * warps.size()) / 8 * 8);
  free_registers = 0;
  for (Warp& w : warps) {
    w.arrivals.clear(), w.products.clear();
    w.product_groups = 0, w.fences = 1, w.collective = 0, w.registers = registers;
    if (program->used.empty()) continue;
    const size_t places = program->register_bytes / 64 + 1;
    w.sums_busy.assign(places, 0), w.a_busy.assign(places, 0), w.written.assign(places, 0);
  }
}

void Block::use_registers(Warp& w, const Inst& i, size_t pc) {
  const Program::Used& used = program->used[pc];
  for (const uint32_t place : used.read)
    if (w.sums_busy[place / 64]) fault(w, i, 0, "a sum of a wgmma in flight is read");
  for (const uint32_t place : used.written) {
    if (w.sums_busy[place / 64]) fault(w, i, 0, "a sum of a wgmma in flight is written");
    if (w.a_busy[place / 64]) fault(w, i, 0, "A of a wgmma in flight is written");
    w.written[place / 64] = w.fences;
  }
}

bool Block::something_lands(bool all) {
  for (Warp& w : warps) {
    for (Product& p : w.products) {
      if (p.done) continue;
      if (all || draw() % 4) break;  // those of a warp one after the other
      run(w, p);
    }
    for (size_t k = 0; k < w.arrivals.size();) {
      // a lane's arrivals one after the other
      bool first = true;
      for (size_t j = 0; j < k; ++j) first &= w.arrivals[j].lane != w.arrivals[k].lane;
      if (!first || (!all && draw() % 4)) {
        ++k;
        continue;
      }
      const Arrival one = w.arrivals[k];
      w.arrivals.erase(w.arrivals.begin() + static_cast<long>(k));
      ptx_run::arrive(w, one);
    }
  }
  for (const Warp& w : warps)
    if (w.alive && w.at_barrier < 0 && !w.parked) return true;
  return false;
}

void Block::finish(Warp& w, const Inst& i) {
  if (!w.products.empty()) fault(w, i, 0, "exit with a wgmma in flight");
}

void put_hopper(OpcodeTable& t) {
  const auto with = [](const std::string& name, size_t operands) { return name + "/" + std::to_string(operands); };
  for (size_t n = 8; n <= 256; n += 8)
    for (const std::string type : {"f16", "bf16"}) {
      const std::string name = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(n) + "k16.f32." + type + "." + type,
                        sums(n / 2, 's');
      put(t, with(name, n / 2 + 9), sums + "wwwwdpiii", multiply<false>, Kind::aligned);
      put(t, with(name, n / 2 + 7), sums + "ddpiiii", multiply<true>, Kind::aligned);
    }
  put(t, "wgmma.fence.sync.aligned", "", wgmma_fence, Kind::aligned);
  put(t, "wgmma.commit_group.sync.aligned", "", wgmma_commit, Kind::aligned);
  put(t, "wgmma.wait_group.sync.aligned", "i", wgmma_wait, Kind::aligned);
  put(t, "setmaxnreg.inc.sync.aligned.u32", "i", set_registers<true>, Kind::aligned);
  put(t, "setmaxnreg.dec.sync.aligned.u32", "i", set_registers<false>, Kind::aligned);

  for (const std::string space : {".shared::cta", ".shared"}) {
    const std::string end = space + ".b64";
    put(t, "mbarrier.init" + end, "aw", init);
    put(t, "mbarrier.inval" + end, "a", inval);
    put(t, with("mbarrier.arrive" + end, 2), "da", arrive_lanes<false, false, true>);
    put(t, with("mbarrier.arrive" + end, 3), "daw", arrive_lanes<true, false, true>);
    put(t, "mbarrier.arrive.expect_tx" + end, "daw", arrive_lanes<false, true, true>);
    put(t, "mbarrier.expect_tx.relaxed.cta" + end, "aw", arrive_lanes<false, true, false>);
    for (const std::string kind : {"try", "test"}) put(t, "mbarrier." + kind + "_wait.parity" + end, "paw", wait);
    put(t, "cp.async.mbarrier.arrive" + end, "a", arrive_after_copies<true>);
    put(t, "cp.async.mbarrier.arrive.noinc" + end, "a", arrive_after_copies<false>);
  }
  for (const char* space : {"", ".shared::cta"})
    put(t, std::string("fence.proxy.async") + space, "", [](Warp& w, const Inst&, uint32_t) {
      w.fenced = w.seen;
      w.clock = w.seen[static_cast<size_t>(w.number)] = tick();
    });
}

}  // namespace ptx_run
