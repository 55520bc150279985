#include "cluster/known_boxes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/check.h"

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kGB = 1'000'000'000;

// A core takes 63 cycles for 2048 multiply-adds of Q4_K in our AVX2 kernel by llvm-mca
// (docs/performance.md, "Tiled weights"); measured kernels reach three quarters of that model.
constexpr double kAvx2MultiplyAddsACycle = 2048.0 / 63 * 0.75;
// Two units a core, of eight floats each, do attention's sums. R1's heads were measured to get half
// of what such units do (docs/performance.md, "Attention": 44 to 67% at contexts of 4096).
constexpr double kAvx2AttentionACycle = 16 * 0.5;
constexpr char kAvx2Source[] =
    "cores and clock of Intel's data sheet, cycles of our AVX2 kernel by llvm-mca, of which three "
    "quarters were measured (docs/performance.md, Tiled weights)";
constexpr char kAttentionSource[] =
    "half of what the cores' multiply-add units do, as measured with AVX2 (docs/performance.md, "
    "Attention)";

// 16 cores of the virtual machine in which our H100 is: an expert in Q4_K, of 44.0 M weights in
// 23.6 MiB, takes one row 0.218 ms and 16 rows 0.837 ms (docs/performance.md, "A stage on a card").
// Reading takes the rest of what a row more takes.
constexpr double kServerRowSeconds = (0.837e-3 - 0.218e-3) / 15;
constexpr double kServerCoreMultiplyAdds = 44.04e6 / kServerRowSeconds / 16;
constexpr double kServerMemoryBytes = 23.6 * 1024 * 1024 / (0.218e-3 - kServerRowSeconds);
constexpr double kServerClock = 2.1e9;  // what /proc/cpuinfo says there

Box::Cpu E3() {
  Box::Cpu cpu;
  cpu.name = "Intel Xeon E3-1240 v5 in a Dell T30";
  cpu.cores = 4;
  cpu.isa = "avx2";
  cpu.multiply_adds = 4 * 3.5e9 * kAvx2MultiplyAddsACycle;
  cpu.attention_multiply_adds = 4 * 3.5e9 * kAvx2AttentionACycle;
  cpu.pcie_generation = 3;
  cpu.price_yuan = 1200 + 400 + 150;
  cpu.sources = {
      {"cores", "Intel ARK, Xeon E3-1240 v5: 4 cores of 3.5 GHz, 8 threads"},
      {"multiply_adds_per_second", kAvx2Source},
      {"attention_multiply_adds_per_second", kAttentionSource},
      {"pcie_generation", "Intel ARK, Xeon E3-1240 v5: PCIe 3.0"},
      {"price_yuan", "the guide: used box 1200, supply of 650 W 400, cooler 150"},
  };
  return cpu;
}

/// Cores of a rented server beside a card of its own.
Box::Cpu ServerShare(std::string name, int cores, int pcie_generation, std::string cores_source) {
  Box::Cpu cpu;
  cpu.name = std::move(name);
  cpu.cores = cores;
  cpu.isa = "avx512";
  cpu.multiply_adds = cores * kServerCoreMultiplyAdds;
  // Twice the floats of AVX2 in a unit.
  cpu.attention_multiply_adds = cores * kServerClock * 2 * kAvx2AttentionACycle;
  cpu.pcie_generation = pcie_generation;
  cpu.sources = {
      {"cores", std::move(cores_source)},
      {"multiply_adds_per_second",
       "by cores of what 16 gave beside our H100 (docs/performance.md, A stage on a card)"},
      {"attention_multiply_adds_per_second", "estimated: as AVX2's, twice as wide, at 2.1 GHz"},
  };
  return cpu;
}

Box::Memory MemoryOf(std::string name, int64_t gib, double read_bytes, std::string source,
                     double price_yuan, std::string price_source) {
  Box::Memory memory;
  memory.name = std::move(name);
  memory.total_bytes = gib * kGiB;
  memory.bytes = WorkerMemory(memory.total_bytes);
  memory.read_bytes = read_bytes;
  memory.price_yuan = price_yuan;
  memory.sources = {{"read_bytes_per_second", std::move(source)}};
  if (price_yuan > 0) memory.sources["price_yuan"] = std::move(price_source);
  return memory;
}

Box::Disk DiskOf(std::string name, int64_t bytes, double read_bytes, std::string source,
                 double price_yuan, std::string price_source) {
  Box::Disk disk;
  disk.name = std::move(name);
  disk.bytes = bytes;
  disk.read_bytes = read_bytes;
  disk.price_yuan = price_yuan;
  disk.sources = {{"read_bytes_per_second", std::move(source)}};
  if (price_yuan > 0) disk.sources["price_yuan"] = std::move(price_source);
  return disk;
}

Box::Disk TwoOf(Box::Disk disk) {
  disk.drives = 2;
  return disk;
}

// What our kernels get of an H100: with the bytes' time and the layers' added to it, this gives
// what four layers of R1 took within 10%, from 64 rows to 512 (docs/performance.md, "A stage on a
// card"). It is an eighth of what its tensor cores can do.
constexpr double kH100MultiplyAdds = 57e12;
constexpr double kH100Cycles = 132 * 1.755e9;  // of all multiprocessors, a second

/// What our kernels may get of another card: as much a multiprocessor and cycle, as unpacking takes
/// that, but no more than half of what it could multiply at most.
double KernelMultiplyAdds(int multiprocessors, double clock, double most) {
  return std::min(kH100MultiplyAdds / kH100Cycles * multiprocessors * clock, most / 2);
}

struct CardFigures {
  int64_t gib;
  double read_bytes;
  double multiply_adds;
  double pcie_bytes;
  double price_yuan;  // 0: not known
};

Box::Card CardOf(std::string name, const CardFigures& figures, std::string source,
                 std::string price_source) {
  Box::Card card;
  card.name = std::move(name);
  card.count = 1;
  card.total_bytes = figures.gib * kGiB;
  card.bytes = WorkerVram(card.total_bytes);
  card.read_bytes = figures.read_bytes;
  card.multiply_adds = figures.multiply_adds;
  card.pcie_bytes = figures.pcie_bytes;
  card.price_yuan = figures.price_yuan;
  card.sources = {
      {"total_bytes", source},
      {"read_bytes_per_second", source},
      {"multiply_adds_per_second",
       absl::StrCat("estimated: what our kernels get of an H100, by multiprocessors and "
                    "clock, at most half of the data sheet's; ",
                    source)},
      {"pcie_bytes_per_second", "a slot of x16 of the card's PCIe generation"}};
  if (figures.price_yuan > 0) card.sources["price_yuan"] = std::move(price_source);
  return card;
}

Box::Network NetworkOf(std::string name, double bytes, std::string source) {
  Box::Network network;
  network.name = std::move(name);
  network.bytes = bytes;
  network.latency_seconds = 0.25e-3;
  network.sources = {
      {"bytes_per_second", std::move(source)},
      {"latency_seconds", "estimated: a message's way through two hosts' kernels and gRPC"}};
  return network;
}

constexpr char kFrames[] = "IEEE 802.3: TCP's part of a frame of 1538 bytes on the wire is 1448";

template <class P>
std::string Keys(const std::vector<KnownPart<P>>& parts) {
  return absl::StrJoin(parts, ", ", [](std::string* out, const KnownPart<P>& part) {
    absl::StrAppend(out, part.key);
  });
}

template <class P>
absl::StatusOr<P> Find(absl::string_view what, absl::string_view key) {
  for (const KnownPart<P>& known : KnownParts<P>()) {
    if (known.key == key) return known.part;
  }
  return absl::NotFoundError(
      absl::StrCat("no ", what, " is called \"", key, "\"; there are ", Keys(KnownParts<P>())));
}

template <class P>
P Known(absl::string_view key) {
  absl::StatusOr<P> part = FindPart<P>(key);
  CARAVAN_CHECK(part.ok());
  return *std::move(part);
}

Box Put(std::string name, absl::string_view cpu, absl::string_view memory, absl::string_view disk,
        absl::string_view card) {
  Box box;
  box.name = std::move(name);
  box.cpu = Known<Box::Cpu>(cpu);
  box.memory = Known<Box::Memory>(memory);
  box.disk = InSlot(Known<Box::Disk>(disk), box.cpu);
  if (!card.empty()) box.card = InSlot(Known<Box::Card>(card), box.cpu);
  box.network = Known<Box::Network>("1gbe");
  return box;
}

/// What a slot leaves of `rate`, whose source then names the slot.
double Limit(double rate, double slot, int generation, absl::string_view field, Box::Part& part) {
  if (rate <= slot) return rate;
  std::string& source = part.sources[std::string(field)];
  source = absl::StrFormat("the slot's, PCIe %d; by itself %.1f GB/s%s%s", generation, rate / 1e9,
                           source.empty() ? "" : ": ", source);
  return slot;
}

}  // namespace

template <>
const std::vector<KnownPart<Box::Cpu>>& KnownParts<Box::Cpu>() {
  static const auto& parts = *new std::vector<KnownPart<Box::Cpu>>{
      {"e3-1240v5", E3()},
      {"a2-ultragpu-1g",
       ServerShare("12 threads of a Cascade Lake Xeon", 6, 4,
                   "Google Cloud's list of machine types, a2-ultragpu-1g: 12 vCPUs")},
      {"h200-host", ServerShare("16 cores of a server with H100 or H200", 16, 5,
                                "the virtual machine of docs/performance.md, A stage on a card")},
  };
  return parts;
}

template <>
const std::vector<KnownPart<Box::Memory>>& KnownParts<Box::Memory>() {
  constexpr char kE3[] = "Intel ARK, Xeon E3-1240 v5: two channels of DDR4-2133, 34.1 GB/s";
  static const auto& parts = *new std::vector<KnownPart<Box::Memory>>{
      {"ddr4-32", MemoryOf("32 GB of DDR4, two channels", 32, 34.1e9, kE3, 600, "the guide")},
      {"ddr4-64", MemoryOf("64 GB of DDR4, two channels", 64, 34.1e9, kE3, 1200,
                           "twice the guide's 600 for 32 GB")},
      {"a2-ultragpu-1g",
       MemoryOf("170 GB beside a rented A100", 170, 35.2e9,
                "a quarter of a Cascade Lake's six channels of DDR4-2933 (Intel ARK: 140.8 GB/s), "
                "as its threads are a quarter of one's",
                0, "")},
      {"h200-host", MemoryOf("128 GiB beside an H100 or H200", 128, kServerMemoryBytes,
                             "measured: docs/performance.md, A stage on a card", 0, "")},
  };
  return parts;
}

template <>
const std::vector<KnownPart<Box::Disk>>& KnownParts<Box::Disk>() {
  static const auto& parts = *new std::vector<KnownPart<Box::Disk>>{
      {"sata", DiskOf("SATA SSD, 1 TB", 1000 * kGB, 0.56e9,
                      "Samsung's data sheet, 870 EVO: sequential reads of 560 MB/s", 0, "")},
      {"nvme3",
       DiskOf("NVMe of PCIe 3, 1 TB", 1000 * kGB, 3.4e9,
              "Samsung's data sheet, 970 EVO 1 TB: sequential reads of 3,400 MB/s", 0, "")},
      {"nvme4", DiskOf("NVMe of PCIe 4, 1 TB", 1000 * kGB, 7.0e9,
                       "Samsung's data sheet, 980 PRO 1 TB: sequential reads of 7,000 MB/s", 500,
                       "the guide")},
      {"2-nvme4", TwoOf(DiskOf("two NVMe of PCIe 4, 1 TB, with the same files", 1000 * kGB, 14.0e9,
                               "twice Samsung's data sheet, 980 PRO 1 TB: 7,000 MB/s", 1000,
                               "twice the guide's 500"))},
  };
  return parts;
}

template <>
const std::vector<KnownPart<Box::Card>>& KnownParts<Box::Card>() {
  constexpr double kPcie3 = 12e9;
  constexpr double kPcie4 = 25e9;
  constexpr double kPcie5 = 55e9;
  static const auto& parts = *new std::vector<KnownPart<Box::Card>>{
      {"1660s",
       CardOf(
           "NVIDIA GeForce GTX 1660 SUPER",
           {6, 336e9, KernelMultiplyAdds(22, 1.785e9, 5.0e12), kPcie3, 900},
           "Nvidia's product page: 6 GB, 192 bits of 14 Gbit/s; 22 multiprocessors at 1.785 GHz, "
           "no tensor cores",
           "the guide")},
      {"3060", CardOf("NVIDIA GeForce RTX 3060 12GB",
                      {12, 360e9, KernelMultiplyAdds(28, 1.777e9, 12.7e12), kPcie4, 1800},
                      "Nvidia's product page: 12 GB, 192 bits of 15 Gbit/s; 28 multiprocessors at "
                      "1.777 GHz",
                      "the guide")},
      {"4090", CardOf("NVIDIA GeForce RTX 4090",
                      {24, 1008e9, KernelMultiplyAdds(128, 2.52e9, 82.6e12), kPcie4, 12000},
                      "Nvidia's Ada white paper: 24 GB, 1008 GB/s; 128 multiprocessors at 2.52 GHz",
                      "the guide")},
      {"a100-40", CardOf("NVIDIA A100 40GB PCIe",
                         {40, 1555e9, KernelMultiplyAdds(108, 1.41e9, 156e12), kPcie4, 0},
                         "Nvidia's A100 data sheet: 40 GB, 1,555 GB/s; 108 multiprocessors at 1.41 "
                         "GHz",
                         "")},
      {"a100-80", CardOf("NVIDIA A100 80GB PCIe",
                         {80, 1935e9, KernelMultiplyAdds(108, 1.41e9, 156e12), kPcie4, 0},
                         "Nvidia's A100 data sheet: 80 GB, 1,935 GB/s; 108 multiprocessors at 1.41 "
                         "GHz",
                         "")},
      {"h200", CardOf("NVIDIA H200", {140, 4680e9, kH100MultiplyAdds, kPcie5, 0},
                      "Nvidia's H200 data sheet: 141 GB; reads of 4.68 TB/s and copies of 55 GB/s "
                      "measured (docs/performance.md, Products on a CUDA card)",
                      "")},
  };
  return parts;
}

template <>
const std::vector<KnownPart<Box::Network>>& KnownParts<Box::Network>() {
  static const auto& parts = *new std::vector<KnownPart<Box::Network>>{
      {"1gbe", NetworkOf("1 GbE", 1e9 / 8 * 1448 / 1538, kFrames)},
      {"2.5gbe", NetworkOf("2.5 GbE", 2.5e9 / 8 * 1448 / 1538, kFrames)},
      {"10gbe", NetworkOf("10 GbE", 10e9 / 8 * 1448 / 1538, kFrames)},
  };
  return parts;
}

template <>
absl::StatusOr<Box::Cpu> FindPart<Box::Cpu>(absl::string_view key) {
  return Find<Box::Cpu>("CPU", key);
}
template <>
absl::StatusOr<Box::Memory> FindPart<Box::Memory>(absl::string_view key) {
  return Find<Box::Memory>("memory", key);
}
template <>
absl::StatusOr<Box::Disk> FindPart<Box::Disk>(absl::string_view key) {
  return Find<Box::Disk>("disk", key);
}
template <>
absl::StatusOr<Box::Card> FindPart<Box::Card>(absl::string_view key) {
  return Find<Box::Card>("card", key);
}
template <>
absl::StatusOr<Box::Network> FindPart<Box::Network>(absl::string_view key) {
  return Find<Box::Network>("network", key);
}

double DriveSlotBytes(int pcie_generation) {
  // What the fastest drives of a generation are sold with; each has twice the one before.
  if (pcie_generation <= 0) return std::numeric_limits<double>::infinity();
  return pcie_generation <= 3 ? 3.4e9 : 7.0e9 * std::exp2(pcie_generation - 4);
}

double CardSlotBytes(int pcie_generation) {
  // 55 of the 63 GB/s of generation 5 were measured (docs/performance.md, "Products on a CUDA
  // card"); older ones give as large a part: about 12 of 15.75.
  if (pcie_generation <= 0) return std::numeric_limits<double>::infinity();
  return pcie_generation >= 5 ? 55e9 : 12.5e9 * std::exp2(pcie_generation - 3);
}

Box::Disk InSlot(Box::Disk disk, const Box::Cpu& cpu) {
  disk.read_bytes = Limit(disk.read_bytes, disk.drives * DriveSlotBytes(cpu.pcie_generation),
                          cpu.pcie_generation, "read_bytes_per_second", disk);
  return disk;
}

Box::Card InSlot(Box::Card card, const Box::Cpu& cpu) {
  card.pcie_bytes = Limit(card.pcie_bytes, CardSlotBytes(cpu.pcie_generation), cpu.pcie_generation,
                          "pcie_bytes_per_second", card);
  return card;
}

const std::vector<Box>& KnownBoxes() {
  static const auto& boxes = *new std::vector<Box>{
      Put("cpu", "e3-1240v5", "ddr4-32", "nvme4", ""),
      Put("cpu-2nvme", "e3-1240v5", "ddr4-32", "2-nvme4", ""),
      Put("1660s", "e3-1240v5", "ddr4-32", "nvme4", "1660s"),
      Put("3060", "e3-1240v5", "ddr4-32", "nvme4", "3060"),
      Put("3060-2nvme", "e3-1240v5", "ddr4-32", "2-nvme4", "3060"),
      Put("4090", "e3-1240v5", "ddr4-32", "nvme4", "4090"),
      Put("a100", "a2-ultragpu-1g", "a2-ultragpu-1g", "nvme4", "a100-80"),
      Put("h200", "h200-host", "h200-host", "nvme4", "h200"),
  };
  return boxes;
}

absl::StatusOr<Box> FindBox(absl::string_view name) {
  for (const Box& box : KnownBoxes()) {
    if (box.name == name) return box;
  }
  const auto append_name = [](std::string* out, const Box& box) { absl::StrAppend(out, box.name); };
  return absl::NotFoundError(absl::StrCat("no box is called \"", name, "\"; there are ",
                                          absl::StrJoin(KnownBoxes(), ", ", append_name)));
}

}  // namespace caravan
