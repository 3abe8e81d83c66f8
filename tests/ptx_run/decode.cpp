// PTX text to programs.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <unordered_map>

#include "ptx.h"

namespace ptx_run {
namespace {

using std::string;
using std::string_view;

[[noreturn]] void refuse(const string& what, string_view text) { throw Fault("PTX: " + what + ": " + string(text)); }

bool in_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '.' || c == '%';
}

string_view trim(string_view s) {
  while (!s.empty() && std::isspace(static_cast<unsigned char>(s.front()))) s.remove_prefix(1);
  while (!s.empty() && std::isspace(static_cast<unsigned char>(s.back()))) s.remove_suffix(1);
  return s;
}

string_view first_word(string_view* s) {
  *s = trim(*s);
  size_t n = 0;
  while (n < s->size() && (in_word((*s)[n]) || s->compare(n, 2, "::") == 0)) n += (*s)[n] == ':' ? 2 : 1;
  const string_view word = s->substr(0, n);
  s->remove_prefix(n);
  return word;
}

class Decoder {
 public:
  Decoder(const Module& m, Program* p) : module_(m), p_(*p) {}

  void run(size_t place) {
    const string_view text = module_.text;
    const size_t open = text.find('(', place), close = text.find(')', open), begin = text.find('{', close);
    parameters(text.substr(open + 1, close - open - 1));
    string_view head = text.substr(close, begin - close);
    if (const size_t at = head.find(".maxntid"); at != string_view::npos)
      p_.max_threads = static_cast<unsigned>(std::atoi(head.data() + at + 8));
    body(begin);
    for (const auto& [inst, label] : jumps_) {
      const auto to = labels_.find(label);
      if (to == labels_.end()) refuse("no such label", label);
      p_.code[inst].target = to->second;
    }
    p_.register_bytes = size_;
    p_.hits.assign(p_.code.size(), 0);
    bool products = false;
    for (const Inst& i : p_.code) {
      const string& name = i.opcode->name;
      products |= !i.sums.empty();
      p_.clocks |= !i.sums.empty() || name.find("mbarrier") != string::npos || name.rfind("setmaxnreg", 0) == 0 ||
                   (name.rfind("bar", 0) == 0 && i.opcode->operands == "ww");
    }
    if (!products) return;
    p_.used.resize(p_.code.size());
    for (size_t pc = 0; pc < p_.code.size(); ++pc) {
      const Inst& i = p_.code[pc];
      if (!i.sums.empty()) continue;  // it says by itself what it uses
      const auto results = static_cast<size_t>(results_of(*i.opcode));
      const string& operands = i.opcode->operands;
      for (size_t k = 0; k < operands.size() && i.kind != Kind::branch; ++k)
        if (operands[k] != 'i' && operands[k] != 'p')
          (k < results ? p_.used[pc].written : p_.used[pc].read).push_back(i.op[k]);
    }
  }

 private:
  void parameters(string_view list) {
    while (!(list = trim(list)).empty()) {
      const size_t comma = std::min(list.find(','), list.size());
      string_view one = list.substr(0, comma);
      list.remove_prefix(std::min(comma + 1, list.size()));
      size_t align = 0, size = 0, count = 1;
      string_view name;
      for (string_view word; one = trim(one), !one.empty();) {
        if (one.front() == '[') {
          count = static_cast<size_t>(std::atol(one.data() + 1));
          break;
        }
        word = first_word(&one);
        if (word.empty()) refuse("parameter", one);
        if (word == ".param") continue;
        if (word == ".align") align = static_cast<size_t>(std::atol(string(first_word(&one)).c_str()));
        else if (word[0] == '.') size = static_cast<size_t>(std::atol(word.data() + 2)) / 8;
        else name = word;
      }
      align = std::max(align, size);
      p_.param_bytes = (p_.param_bytes + align - 1) / align * align;
      p_.params.push_back({string(name), p_.param_bytes, size * count});
      p_.param_bytes += size * count;
    }
  }

  void body(size_t at) {
    const string_view text = module_.text;
    int depth = 0, file = 0, line = 0;
    for (;;) {
      while (std::isspace(static_cast<unsigned char>(text[at]))) ++at;
      if (text.compare(at, 2, "//") == 0) {
        at = text.find('\n', at);
      } else if (text[at] == '{') {
        ++depth, ++at;
      } else if (text[at] == '}') {
        if (++at, --depth == 0) return;
      } else if (text.compare(at, 4, ".loc") == 0) {
        const size_t end = text.find('\n', at);
        char* next;
        file = static_cast<int>(std::strtol(text.data() + at + 4, &next, 10));
        line = static_cast<int>(std::strtol(next, nullptr, 10));
        at = end;
      } else {
        size_t n = at;
        while (in_word(text[n])) ++n;
        if (text[n] == ':' && text[n + 1] != ':' && text[at] != '.') {
          labels_[string(text.substr(at, n - at))] = static_cast<int>(p_.code.size());
          at = n + 1;
          continue;
        }
        const size_t end = text.find(';', at);
        const string_view statement = text.substr(at, end - at);
        at = end + 1;
        if (statement.rfind(".reg", 0) == 0) registers(statement.substr(4));
        else if (statement.rfind(".pragma", 0) == 0) continue;
        else if (statement[0] == '.') refuse("directive", statement);
        else instruction(statement, file, line);
      }
    }
  }

  void registers(string_view s) {  // .reg .b32 %r<10> or .reg .b64 %tmp
    const string_view type = first_word(&s);
    const int bytes = type == ".pred" ? 0 : std::atoi(type.data() + 2) / 8;
    if (type != ".pred" && bytes != 2 && bytes != 4 && bytes != 8) refuse("type of register", type);
    const string_view name = first_word(&s);
    s = trim(s);
    if (!s.empty() && s[0] == '<') ranges_.push_back({string(name), bytes});
    else named_[string(name)] = {allocate(bytes), bytes};
  }

  struct Place {
    uint32_t at;
    int bytes;  // 0: predicate
  };

  uint32_t allocate(int bytes) {
    const size_t size = bytes == 0 ? 4 : 32 * static_cast<size_t>(bytes);
    const size_t align = bytes == 0 ? 4 : 64;
    size_ = (size_ + align - 1) / align * align;
    const auto at = static_cast<uint32_t>(size_);
    size_ += size;
    return at;
  }

  Place named(string_view name) {
    const string key(name);
    if (const auto found = named_.find(key); found != named_.end()) return found->second;
    if (key == "%tid.x" || key == "%tid.y" || key == "%tid.z" || key == "%ntid.x" || key == "%ctaid.x" ||
        key == "%ctaid.y" || key == "%ctaid.z" || key == "%nctaid.x" || key == "%nctaid.y" || key == "%ntid.y" ||
        key == "%laneid") {
      const Place place{allocate(4), 4};
      p_.specials.emplace_back(place.at, key);
      return named_[key] = place;
    }
    for (const auto& [prefix, bytes] : ranges_)
      if (name.substr(0, prefix.size()) == prefix && name.size() > prefix.size() &&
          std::all_of(name.begin() + static_cast<long>(prefix.size()), name.end(),
                      [](char c) { return c >= '0' && c <= '9'; }))
        return named_[key] = {allocate(bytes), bytes};
    refuse("register", name);
  }

  uint32_t constant(uint64_t value, int bytes) {
    if (bytes < 8 && bytes > 0) value &= (1ull << 8 * bytes) - 1;
    const auto [found, fresh] = constants_.try_emplace({value, bytes}, 0);
    if (fresh) {
      found->second = allocate(bytes);
      p_.constants.push_back({found->second, value, bytes});
    }
    return found->second;
  }

  // A number, or the address of a parameter or of shared memory
  uint64_t value(string_view s) {
    if (s.substr(0, 2) == "0f" || s.substr(0, 2) == "0F" || s.substr(0, 2) == "0d" || s.substr(0, 2) == "0D")
      return std::strtoull(string(s.substr(2)).c_str(), nullptr, 16);
    if (std::isdigit(static_cast<unsigned char>(s[0]))) return std::strtoull(string(s).c_str(), nullptr, 0);
    if (s[0] == '-') return static_cast<uint64_t>(std::strtoll(string(s).c_str(), nullptr, 0));
    for (const Param& p : p_.params)
      if (p.name == s) return p.offset;
    const string declared = ".b8 " + string(s) + "[]";
    if (module_.text.find(declared) != string::npos) return kSharedBase;  // the one array of dynamic shared memory
    refuse("symbol", s);
  }

  static int width(char c) { return c == 'p' ? 0 : c == 'h' ? 2 : c == 'w' ? 4 : 8; }

  // [register + constant], [symbol + constant], [constant]
  void address(string_view s, Inst* i, uint32_t* op, int64_t* displacement) {
    if (s.size() < 2 || s.front() != '[' || s.back() != ']') refuse("address", s);
    s = s.substr(1, s.size() - 2);
    const size_t plus = s.find('+');
    const string_view base = trim(s.substr(0, plus));
    *displacement = plus == string_view::npos ? 0 : static_cast<int64_t>(value(trim(s.substr(plus + 1))));
    if (base[0] == '%') {
      const Place p = named(base);
      if (p.bytes != 4 && p.bytes != 8) refuse("address", s);
      *op = p.at, i->wide = p.bytes == 8;
    } else {
      *op = constant(value(base), 8), i->wide = true;
    }
  }

  void instruction(string_view s, int file, int line) {
    Inst i;
    i.text = s, i.file = file, i.line = line;
    if (s[0] == '@') {
      s.remove_prefix(1);
      if (s[0] == '!') i.negate = true, s.remove_prefix(1);
      const Place guard = named(first_word(&s));
      i.guard = static_cast<int>(guard.at);
      s = trim(s);
    }
    string name(first_word(&s));
    s = trim(s);
    std::vector<string_view> operands;
    bool braces_first = false, braces_second = false;
    split(s, &operands, &braces_first, &braces_second);
    if (name == "mov.b32" && (braces_first || braces_second)) name = braces_first ? "unpack.b32" : "pack.b32";
    if (name == "mov.b64" && (braces_first || braces_second)) name = braces_first ? "unpack.b64" : "pack.b64";
    const Opcode* o = find_opcode(name + "/" + std::to_string(operands.size()));  // of that many operands
    if (!o) o = find_opcode(name);
    if (!o) refuse("unknown instruction", i.text);
    i.opcode = o, i.run = o->run, i.kind = o->kind, i.read_only = name.find(".nc") != string::npos;
    if (o->kind == Kind::branch) {
      jumps_.emplace_back(p_.code.size(), string(operands.at(0)));
      p_.code.push_back(i);
      return;
    }
    if (o->operands.substr(0, 2) == "wp" && o->name[0] == 's' && operands.size() + 1 == o->operands.size())
      operands.insert(operands.begin() + 1, "_");  // shfl without its predicate
    if (operands.size() != o->operands.size()) refuse("number of operands", i.text);
    std::vector<Inst> after;  // of a load into wider registers
    const size_t sums = o->operands.rfind('s') + 1;  // they are the first
    for (size_t n = 0; n < operands.size(); ++n) {
      const char kind = o->operands[n];
      const string_view what = operands[n];
      if (kind == 's') {
        const Place p = named(what);
        if (p.bytes != 4) refuse("size of " + string(what), i.text);
        i.sums.push_back(p.at);
        continue;
      }
      const size_t k = n - sums;
      if (kind == 'i') {
        i.op[k] = static_cast<uint32_t>(value(what));
      } else if (kind == 'a' && o->operands == "aAi") {
        int64_t displacement;
        address(what, &i, &i.op[k], &displacement);
        if (i.wide) refuse("shared address of 64 bits", i.text);
        i.op[3] = static_cast<uint32_t>(displacement);
      } else if (kind == 'a' || kind == 'A') {
        address(what, &i, &i.op[k], &i.imm);
      } else if (what == "_") {
        i.op[k] = allocate(width(kind));
      } else if (what[0] == '%' || named_.count(string(what))) {
        const Place p = named(what);
        i.op[k] = p.at;
        const int want = width(kind);
        if (p.bytes == want) continue;
        // loads, stores and conversions take registers wider than their type: through one of its size
        const bool loads = o->name.compare(0, 2, "ld") == 0,
                   reads = o->name.compare(0, 2, "st") == 0 || (o->name.compare(0, 3, "cvt") == 0 && k > 0);
        if (want == 0 || p.bytes < want || !(loads || reads)) refuse("size of " + string(what), i.text);
        const string wider = std::to_string(8 * p.bytes), own = std::to_string(8 * want),
                     sign(1, o->name[o->name.rfind('.') + 1] == 's' ? 's' : 'u');
        Inst widen = i;
        widen.opcode = find_opcode(loads ? "cvt." + sign + wider + "." + sign + own : "cvt.u" + own + ".u" + wider);
        if (!widen.opcode) refuse("wider register", i.text);
        widen.run = widen.opcode->run, widen.kind = Kind::plain;
        const uint32_t narrow = allocate(want);
        widen.op[0] = loads ? p.at : narrow, widen.op[1] = loads ? narrow : p.at;
        i.op[k] = narrow;
        if (loads) after.push_back(widen);
        else p_.code.push_back(widen);
      } else {
        const int bytes = width(kind);
        uint64_t v = value(what);
        if (kind == 'p') v = v ? ~0ull : 0;
        i.op[k] = constant(v, bytes);
      }
    }
    p_.code.push_back(i);
    p_.code.insert(p_.code.end(), after.begin(), after.end());
  }

  // Operands, vectors taken apart; d|p is two.
  static void split(string_view s, std::vector<string_view>* out, bool* first, bool* second) {
    int place = 0;
    while (!(s = trim(s)).empty()) {
      if (s[0] == '{') {
        if (place == 0) *first = true;
        if (place == 1) *second = true;
        const size_t end = s.find('}');
        string_view inner = s.substr(1, end - 1);
        bool more, most;
        split(inner, out, &more, &most);
        s.remove_prefix(end + 1);
      } else if (s[0] == '[') {
        const size_t end = s.find(']');
        out->push_back(s.substr(0, end + 1));
        s.remove_prefix(end + 1);
      } else {
        const size_t end = std::min(s.find_first_of(",|"), s.size());
        out->push_back(trim(s.substr(0, end)));
        s.remove_prefix(end);
      }
      s = trim(s);
      if (!s.empty()) s.remove_prefix(1);  // , or |
      ++place;
    }
  }

  const Module& module_;
  Program& p_;
  size_t size_ = 0;
  std::vector<std::pair<string, int>> ranges_;
  std::unordered_map<string, Place> named_;
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  std::unordered_map<string, int> labels_;
  std::vector<std::pair<size_t, string>> jumps_;
};

}  // namespace

Module::Module(string ptx) : text(std::move(ptx)) {
  constexpr string_view entry = ".entry ";
  for (size_t at = text.find(entry); at != string::npos; at = text.find(entry, at + 1)) {
    const size_t begin = at + entry.size();
    entries[text.substr(begin, text.find_first_of("( \n", begin) - begin)] = at;
  }
  for (size_t at = text.find("\n.file"); at != string::npos; at = text.find("\n.file", at + 1)) {
    const int number = std::atoi(text.c_str() + at + 6);
    const size_t begin = text.find('"', at) + 1;
    const string path = text.substr(begin, text.find('"', begin) - begin), root = "csrc/cuda/";
    const size_t ours = path.rfind(root), slash = path.rfind('/');  // of the project below csrc/cuda, of others the name
    const string name = path.substr(ours != string::npos ? ours + root.size() : slash == string::npos ? 0 : slash + 1);
    files[number] = std::filesystem::path(name).lexically_normal().string();
  }
}

Program& Module::program(const string& entry) {
  auto& p = programs[entry];
  if (!p) {
    const auto place = entries.find(entry);
    if (place == entries.end()) throw Fault("PTX: there is no entry " + entry);
    auto fresh = std::make_unique<Program>();
    fresh->name = entry;
    fresh->files = &files;
    Decoder(*this, fresh.get()).run(place->second);
    p = std::move(fresh);
  }
  return *p;
}

}  // namespace ptx_run
