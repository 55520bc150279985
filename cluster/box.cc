#include "cluster/box.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// An E3-1240 v5 has four Skylake cores of 3.5 GHz and two channels of DDR4-2133, 34.1 GB/s (Intel's
// data sheet). A core takes 63 cycles for 2048 multiply-adds of Q4_K in our AVX2 kernel by llvm-mca
// (docs/performance.md, "Tiled weights"); measured kernels reach three quarters of that model.
constexpr double kE3MemoryBytes = 34.1e9;
constexpr double kE3MultiplyAdds = 4 * 3.5e9 * 2048 / 63 * 0.75;
// Two units a core, of eight floats each, do attention's sums. R1's heads were measured to get half
// of what such units do (docs/performance.md, "Attention": 44 to 67% at contexts of 4096).
constexpr double kE3AttentionMultiplyAdds = 4 * 3.5e9 * 16 * 0.5;

// 24 of 32 GiB: the rest is the system's.
constexpr int64_t kMemory = 24 * kGiB;

// Sequential reads of large blocks: a drive of PCIe 3 x4 and of PCIe 4 x4, as vendors state them.
constexpr double kNvme3Bytes = 3.4e9;
constexpr double kNvme4Bytes = 7.0e9;

// 28 KiB of activations over 1 GbE take 0.25 ms, and a message on its way through two hosts about
// as much.
constexpr double kHop = 0.5e-3;

Box Base(std::string name, double disk_read_bytes) {
  Box box;
  box.name = std::move(name);
  box.disk_read_bytes = disk_read_bytes;
  box.memory_bytes = kMemory;
  box.memory_read_bytes = kE3MemoryBytes;
  box.cpu_multiply_adds = kE3MultiplyAdds;
  box.cpu_attention_multiply_adds = kE3AttentionMultiplyAdds;
  box.hop_seconds = kHop;
  return box;
}

/// Nvidia's data sheets: memory's rate, and half of the 16-bit operations a second of what the card
/// multiplies matrices with. A gigabyte of a card's memory is the driver's and the workspace's.
Box WithCard(Box box, int64_t vram_gib, double vram_read_bytes, double multiply_adds) {
  box.vram_bytes = (vram_gib - 1) * kGiB;
  box.vram_read_bytes = vram_read_bytes;
  box.gpu_multiply_adds = multiply_adds;
  return box;
}

}  // namespace

const std::vector<Box>& KnownBoxes() {
  static const auto& boxes = *new std::vector<Box>{
      Base("cpu", kNvme3Bytes),
      Base("cpu-nvme4", kNvme4Bytes),
      WithCard(Base("1660s", kNvme3Bytes), 6, 336e9, 5e12),  // no tensor cores: half2
      WithCard(Base("3060", kNvme3Bytes), 12, 360e9, 25e12),
      WithCard(Base("3060-nvme4", kNvme4Bytes), 12, 360e9, 25e12),
  };
  return boxes;
}

absl::StatusOr<Box> FindBox(absl::string_view name) {
  std::vector<std::string> names;
  for (const Box& box : KnownBoxes()) {
    if (box.name == name) return box;
    names.push_back(box.name);
  }
  return absl::NotFoundError(
      absl::StrCat("no box is called \"", name, "\"; there are ", absl::StrJoin(names, ", ")));
}

}  // namespace caravan
