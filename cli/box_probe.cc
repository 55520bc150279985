#include "cli/box_probe.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/buffer.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/cpu_model.h"
#include "base/io/read_rate.h"
#include "base/json.h"
#include "base/log.h"
#include "base/median.h"
#include "base/named_thread.h"
#include "base/open_file.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/compute_meter.h"
#include "cli/disk_probe.h"
#include "cluster/box_json.h"
#include "cluster/machine.h"

namespace caravan {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// An expert of R1 at 4.5 bits a weight.
constexpr int64_t kExpertBytes = 24 * kMiB;
constexpr int kDiskRuns = 3;

// Of a chunk of a prompt, an expert's: what the CPU computes grows no more after a few dozen.
constexpr int64_t kCpuRows = 128;
constexpr int64_t kCardRows = 512;

// Of KeptBox: a worker waits for it before it joins.
constexpr absl::Duration kBriefDuration = absl::Milliseconds(100);
constexpr int64_t kBriefScratchBytes = 256 * kMiB;
constexpr int64_t kBriefMemoryBytes = 256 * kMiB;

constexpr char kMeasured[] = "measured by caravan probe";
constexpr char kSystem[] = "what the system says";

/// The largest file there that is large enough to be read; empty: none is.
std::string LargestFile(const std::string& directory) {
  std::string largest;
  std::uintmax_t most = kLeastProbeBytes - 1;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
    if (!entry.is_regular_file(ignored)) continue;
    const std::uintmax_t size = entry.file_size(ignored);
    if (size == static_cast<std::uintmax_t>(-1) || size <= most) continue;
    most = size;
    largest = entry.path().string();
  }
  return largest;
}

/// Reads files on several drives at the same time.
class DriveReader {
 public:
  DriveReader(std::vector<std::unique_ptr<DirectFile>> files, const ReadLoad& load,
              std::stop_token stop)
      : files_(std::move(files)), load_(load), stop_(std::move(stop)) {}

  /// Bytes a second of all together, for the load's duration.
  /// Errors: ResourceExhausted - too little memory; as MeasureReadRate.
  absl::StatusOr<double> ReadAll() {
    std::vector<absl::StatusOr<ReadRate>> rates(files_.size(), absl::UnknownError("not read"));
    while (memory_.size() < files_.size()) {
      CARAVAN_ASSIGN_OR_RETURN(memory_.emplace_back(), Buffer::Allocate(MemoryOf(load_)));
      memory_.back().PreferLargePages();
    }
    {
      std::vector<std::unique_ptr<NamedThread>> threads;
      for (size_t i = 0; i < files_.size(); ++i) {
        threads.push_back(std::make_unique<NamedThread>("drive-reader", [this, i, &rates] {
          rates[i] =
              MeasureReadRate(*files_[i], load_,
                              {memory_[i].data(), static_cast<size_t>(memory_[i].size())}, stop_);
        }));
      }
      for (const std::unique_ptr<NamedThread>& thread : threads) thread->Join();
    }
    double sum = 0;
    for (const absl::StatusOr<ReadRate>& rate : rates) {
      CARAVAN_RETURN_IF_ERROR(rate.status());
      sum += 1e9 * rate->gb_per_s;
    }
    return sum;
  }

 private:
  const std::vector<std::unique_ptr<DirectFile>> files_;
  const ReadLoad load_;
  const std::stop_token stop_;
  std::vector<Buffer> memory_;  // of each file's reads
};

/// Measures one part after another.
class BoxProber {
 public:
  explicit BoxProber(const BoxProbeOptions& options) : options_(options) {}

  absl::StatusOr<Box> Run() {
    CARAVAN_ASSIGN_OR_RETURN(machine_, ProbeMachine());
    Box box;
    box.name = machine_.host_name;
    // What may be asked in vain comes first.
    if (!options_.link_address.empty()) {
      CARAVAN_ASSIGN_OR_RETURN(box.network, ProbeNetwork());
    }
    CARAVAN_ASSIGN_OR_RETURN(box.disk, ProbeDiskPart());
    box.memory = MemorySizes();
    CARAVAN_ASSIGN_OR_RETURN(box.cpu, ProbeCpu(box.memory));
    if (options_.card != nullptr) {
      CARAVAN_ASSIGN_OR_RETURN(box.card, ProbeCard(*options_.card));
    }
    return box;
  }

 private:
  absl::Status CheckStop() const {
    if (!options_.stop.stop_requested()) return absl::OkStatus();
    return absl::CancelledError("measuring was stopped");
  }

  void Say(const std::string& result) const {
    if (options_.on_result != nullptr) options_.on_result(result);
  }

  Box::Memory MemorySizes() const {
    Box::Memory memory;
    memory.total_bytes = machine_.memory_bytes;
    memory.bytes = DefaultWorkerMemory(machine_);
    memory.sources = {{"total_bytes", kSystem},
                      {"worker_bytes", "what a worker takes of what is free, if not told"}};
    return memory;
  }

  /// With the rate at which its products read `memory`.
  absl::StatusOr<Box::Cpu> ProbeCpu(Box::Memory& memory) {
    Box::Cpu cpu;
    cpu.name = CpuModel();
    cpu.cores = options_.cpu.num_threads;
    CARAVAN_ASSIGN_OR_RETURN(const RowOps* const ops, RowOpsFor(options_.cpu.isa));
    cpu.isa = IsaOptionName(ops->isa);
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeCpuBackend(options_.cpu));
    ComputeMeter meter(*backend, options_.duration, options_.stop);
    CARAVAN_ASSIGN_OR_RETURN(const ComputeMeter::Products products,
                             meter.MeasureProducts(kCpuRows));
    memory.read_bytes = products.read_bytes;
    memory.sources["read_bytes_per_second"] =
        absl::StrCat(kMeasured, ": by products of Q4_K [2048, 7168] by one row");
    Say(absl::StrFormat("memory is read at %.1f GB/s", 1e-9 * memory.read_bytes));
    cpu.multiply_adds = products.multiply_adds;
    Say(absl::StrFormat("%d cores multiply packed weights at %.1f G multiply-adds/s (%s)",
                        cpu.cores, 1e-9 * cpu.multiply_adds, cpu.isa));
    CARAVAN_ASSIGN_OR_RETURN(cpu.attention_multiply_adds, meter.AttentionMultiplyAdds());
    Say(absl::StrFormat("they compute attention at %.1f G multiply-adds/s",
                        1e-9 * cpu.attention_multiply_adds));
    cpu.sources = {
        {"cores", kSystem},
        {"isa", "what the kernels choose"},
        {"multiply_adds_per_second", absl::StrCat(kMeasured, ": Q4_K [2048, 7168], what ", kCpuRows,
                                                  " rows take more than one")},
        {"attention_multiply_adds_per_second",
         absl::StrCat(kMeasured, ": 128 heads over a KV cache of F16, the last 64 of 512 tokens")}};
    return cpu;
  }

  absl::StatusOr<Box::Card> ProbeCard(const ComputeDevice& device) {
    CARAVAN_RETURN_IF_ERROR(CheckStop());
    Box::Card card;
    card.name = device.Name();
    card.count = 1;
    card.bytes = device.memory_budget_bytes();
    CARAVAN_ASSIGN_OR_RETURN(const CardMemory memory, device.MeasureMemory());
    card.total_bytes = memory.total_bytes;
    card.read_bytes = memory.read;
    card.pcie_bytes = memory.to_card;
    Say(absl::StrFormat(
        "%s reads its memory at %.0f GB/s; copies to it go at %.1f GB/s, from it at "
        "%.1f GB/s",
        card.name, 1e-9 * memory.read, 1e-9 * memory.to_card, 1e-9 * memory.from_card));
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                             device.MakeBackend(MeasuredConfig(), kCardRows));
    ComputeMeter meter(*backend, options_.duration, options_.stop);
    CARAVAN_ASSIGN_OR_RETURN(card.multiply_adds, meter.MultiplyAdds(kCardRows));
    Say(absl::StrFormat("it multiplies packed weights at %.0f G multiply-adds/s",
                        1e-9 * card.multiply_adds));
    card.sources = {
        {"total_bytes", "what the driver says"},
        {"worker_bytes", "what a worker takes of what is free, if not told"},
        {"read_bytes_per_second", kMeasured},
        {"multiply_adds_per_second",
         absl::StrCat(kMeasured, ": Q4_K [2048, 7168] by ", kCardRows, " rows")},
        {"pcie_bytes_per_second", absl::StrCat(kMeasured, ": from page-locked memory")}};
    return card;
  }

  absl::StatusOr<Box::Disk> ProbeDiskPart() {
    Box::Disk disk;
    disk.name = absl::StrCat("disk of ", options_.disk_directory);
    disk.drives = static_cast<int>(1 + options_.mirrors.size());
    std::vector<std::unique_ptr<DirectFile>> files;
    bool direct = true;
    // A mirror may have copies of a part alone, and room for no more.
    CARAVAN_ASSIGN_OR_RETURN(disk.bytes, RoomForModel(options_.disk_directory));
    for (const std::string& directory : Directories()) {
      CARAVAN_ASSIGN_OR_RETURN(files.emplace_back(), FileToRead(directory));
      direct = direct && files.back()->direct();
    }
    ReadLoad load;
    load.read_bytes = kExpertBytes;
    load.duration = options_.duration;
    DriveReader reader(std::move(files), load, options_.stop);
    std::vector<double> rates;
    for (int run = 0; run < kDiskRuns; ++run) {
      CARAVAN_ASSIGN_OR_RETURN(rates.emplace_back(), reader.ReadAll());
    }
    disk.read_bytes = Median(std::move(rates));
    const char* const how = direct ? "" : ", through the page cache (no O_DIRECT there)";
    disk.sources = {{"bytes", "what is free, and the files that lie there"},
                    {"read_bytes_per_second",
                     absl::StrCat(kMeasured, ": reads of 24 MiB as the expert store makes them",
                                  disk.drives > 1 ? ", of all drives at once" : "", how)}};
    Say(disk.drives == 1
            ? absl::StrFormat("the disk is read at %.2f GB/s%s", 1e-9 * disk.read_bytes, how)
            : absl::StrFormat("%d drives are read at %.2f GB/s together%s", disk.drives,
                              1e-9 * disk.read_bytes, how));
    return disk;
  }

  std::vector<std::string> Directories() const {
    std::vector<std::string> directories = {options_.disk_directory};
    directories.insert(directories.end(), options_.mirrors.begin(), options_.mirrors.end());
    return directories;
  }

  absl::StatusOr<std::unique_ptr<DirectFile>> FileToRead(const std::string& directory) const {
    const std::string largest = options_.reads_files ? LargestFile(directory) : "";
    if (!largest.empty()) return DirectFile::Open(largest);
    return MakeScratchFile(directory, options_.scratch_bytes, options_.stop);
  }

  /// A pack that lies in the directory already would find room there again.
  static absl::StatusOr<int64_t> RoomForModel(const std::string& directory) {
    struct statvfs disk;
    if (::statvfs(directory.c_str(), &disk) != 0) return ErrnoStatus(errno, directory);
    auto bytes = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
      if (!entry.is_regular_file(ignored)) continue;
      const std::uintmax_t size = entry.file_size(ignored);
      if (size != static_cast<std::uintmax_t>(-1)) bytes += static_cast<int64_t>(size);
    }
    return bytes;
  }

  absl::StatusOr<Box::Network> ProbeNetwork() {
    LinkProbeOptions options;
    options.address = options_.link_address;
    options.duration = options_.duration;
    options.stop = options_.stop;
    CARAVAN_ASSIGN_OR_RETURN(const LinkProbe link, ProbeLink(options));
    Box::Network network = NetworkOf(link);
    Say(absl::StrFormat("a message to %s takes %.3f ms, and many go at %.1f MB/s", link.address,
                        1e3 * network.latency_seconds, 1e-6 * network.bytes));
    return network;
  }

  const BoxProbeOptions& options_;
  Machine machine_;
};

absl::Status WriteFile(const std::string& path, const std::string& text) {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file, OutputFile::Create(path));
  CARAVAN_RETURN_IF_ERROR(file->Write(text));
  return file->Commit();
}

}  // namespace

absl::StatusOr<Box> ProbeBox(const BoxProbeOptions& options) {
  CARAVAN_CHECK(options.duration > absl::ZeroDuration() && options.duration <= absl::Seconds(10));
  CARAVAN_CHECK(options.scratch_bytes >= kLeastProbeBytes);
  return BoxProber(options).Run();
}

absl::StatusOr<std::optional<Box>> KeptBox(const std::string& path, BoxProbeOptions options) {
  absl::StatusOr<nlohmann::json> kept = ReadJsonFile(path);
  if (kept.ok()) {
    CARAVAN_ASSIGN_OR_RETURN(Box box, BoxFromJson(*kept, path));
    const auto drives = static_cast<int>(1 + options.mirrors.size());
    if (box.disk.drives != drives) {
      LogWarning("box_has_other_drives",
                 {{"file", path}, {"drives", box.disk.drives}, {"used", drives}});
    }
    return box;
  }
  if (!absl::IsNotFound(kept.status())) return kept.status();
  options.duration = kBriefDuration;
  options.scratch_bytes = kBriefScratchBytes;
  options.memory_bytes = kBriefMemoryBytes;
  options.reads_files = true;
  const auto has_nothing_to_read = [](const std::string& directory) {
    return LargestFile(directory).empty() && ::access(directory.c_str(), W_OK) != 0;
  };
  // A model's directory may be read-only; the disk of the present one is then the best guess.
  if (has_nothing_to_read(options.disk_directory)) options.disk_directory = ".";
  std::erase_if(options.mirrors, [&](const std::string& mirror) {
    if (!has_nothing_to_read(mirror)) return false;
    LogWarning("mirror_not_measured", {{"directory", mirror}});
    return true;
  });
  LogInfo("measuring_box", {{"file", path}, {"why", "it is not there"}});
  absl::StatusOr<Box> box = ProbeBox(options);
  if (!box.ok()) {
    LogWarning("box_not_measured", {{"why", box.status().message()}});
    return std::nullopt;
  }
  const absl::Status written = WriteFile(path, BoxToJson(*box).dump(2) + "\n");
  if (!written.ok()) LogWarning("box_not_kept", {{"file", path}, {"why", written.message()}});
  return *std::move(box);
}

std::string BoxTable(const Box& box) {
  std::string table = absl::StrFormat("box \"%s\"\n\n", box.name);
  const auto add = [&](absl::string_view what, const std::string& figure) {
    absl::StrAppendFormat(&table, "%-34s%s\n", what, figure);
  };
  const auto rate = [](double amount, const char* unit) {
    // Four digits of what is small, no exponent of what is large.
    return amount < 1e11 ? absl::StrFormat("%.3f %s", 1e-9 * amount, unit)
                         : absl::StrFormat("%.0f %s", 1e-9 * amount, unit);
  };
  add("CPU", absl::StrFormat("%d cores, %s%s%s", box.cpu.cores, box.cpu.isa,
                             box.cpu.name.empty() ? "" : ", ", box.cpu.name));
  add("  packed products", rate(box.cpu.multiply_adds, "G multiply-adds/s"));
  add("  attention", rate(box.cpu.attention_multiply_adds, "G multiply-adds/s"));
  add("memory", absl::StrCat(FormatByteSize(box.memory.total_bytes), ", of which a worker takes ",
                             FormatByteSize(box.memory.bytes)));
  add("  read", rate(box.memory.read_bytes, "GB/s"));
  add("disk", absl::StrCat("room for ", FormatByteSize(box.disk.bytes)));
  add("  reads of experts", rate(box.disk.read_bytes, "GB/s"));
  if (box.card.count > 0) {
    add("card", absl::StrCat(box.card.name, ", ", FormatByteSize(box.card.total_bytes),
                             ", of which a worker takes ", FormatByteSize(box.card.bytes)));
    add("  read", rate(box.card.read_bytes, "GB/s"));
    add("  packed products", rate(box.card.multiply_adds, "G multiply-adds/s"));
    add("  copies to it", rate(box.card.pcie_bytes, "GB/s"));
  } else {
    add("card", "none");
  }
  if (box.network.bytes > 0) {
    add("network", absl::StrFormat("%.1f MB/s each way, %.3f ms", 1e-6 * box.network.bytes,
                                   1e3 * box.network.latency_seconds));
  } else {
    add("network", "not measured (--link)");
  }
  return table;
}

}  // namespace caravan
