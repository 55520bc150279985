// Packing and loading beside what the disk and the quantizer allow, with a synthetic FP8 checkpoint
// of R1's widths (fewer layers, heads and experts, a smaller vocabulary) that it writes first.
//
//   storage_bench [--dir DIR] [--size 2GiB] [--rounds 3] [--threads N]
//
// It needs four times --size in DIR, which is removed at the end
// (not after a failure). Everything is measured in turns,
// --rounds times; medians count. What is read "cold" was dropped from the page cache before, which
// mincore confirms; a disk behind a hypervisor may still have a cache of its own, for all alike.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/buffer.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/file.h"
#include "base/thread_pool.h"
#include "bench/must_be.h"
#include "kernels/quant/dequantize.h"
#include "kernels/quant/quantize.h"
#include "model/pack/packed_model.h"
#include "model/pack/packer.h"
#include "model/stored_model.h"
#include "model/synth/synthetic_model.h"
#include "nlohmann/json.hpp"
#include "worker/stage_weights.h"

namespace caravan {
namespace {

/// Of one read or write.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// FP8, 2 layers with experts.
nlohmann::json ConfigOf(int64_t num_experts) {
  nlohmann::json config = nlohmann::json::parse(R"json({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 1, "hidden_act": "silu",
    "hidden_size": 7168, "intermediate_size": 4096, "kv_lora_rank": 512,
    "max_position_embeddings": 4096, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 1, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 32,
    "num_experts_per_tok": 4, "num_hidden_layers": 3, "num_key_value_heads": 32,
    "num_nextn_predict_layers": 0, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "quantization_config": {"fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 8192})json");
  config["n_routed_experts"] = num_experts;
  return config;
}

/// Two layers of experts, of 3 x 2048 x 7168 bytes each, and about 0.6 GB of all else.
int64_t ExpertsOf(int64_t model_bytes) {
  constexpr int64_t kExpertBytes = int64_t{3} * 2048 * 7168;
  return std::max<int64_t>(4, (model_bytes - 600'000'000) / (2 * kExpertBytes));
}

/// A file descriptor; a path that cannot be opened ends the program.
class OpenedFile {
 public:
  OpenedFile(const std::string& path, int flags) : fd_(::open(path.c_str(), flags, 0666)) {
    if (fd_ < 0) MustBe(absl::ErrnoToStatus(errno, path));
  }
  ~OpenedFile() { ::close(fd_); }
  OpenedFile(const OpenedFile&) = delete;
  OpenedFile& operator=(const OpenedFile&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

int64_t FileBytes(const std::string& path) {
  return static_cast<int64_t>(std::filesystem::file_size(path));
}

/// Bytes of the file that are in the page cache.
int64_t CachedBytes(const std::string& path) {
  const auto file = MustBe(MappedFile::Open(path));
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((file->bytes().size() + page - 1) / page);
  CARAVAN_CHECK(::mincore(const_cast<std::byte*>(file->bytes().data()), file->bytes().size(),
                          resident.data()) == 0);
  return std::count_if(resident.begin(), resident.end(), [](unsigned char r) { return r & 1; }) *
         static_cast<int64_t>(page);
}

/// REQUIRES: nobody has them mapped.
void DropFromCache(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    const OpenedFile file(path, O_RDONLY);
    CARAVAN_CHECK(::fsync(file.get()) == 0);
    CARAVAN_CHECK(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED) == 0);
    const int64_t cached = CachedBytes(path);
    if (cached > FileBytes(path) / 100) {
      std::fprintf(stderr, "storage_bench: %s: %ld bytes stay in the page cache\n", path.c_str(),
                   static_cast<long>(cached));
      std::exit(1);
    }
  }
}

/// Pieces of all files, in order.
struct FilePiece {
  int fd;
  int64_t offset;
  int64_t size;
};

/// Reads all files by so many threads, each of which takes the next piece.
void ReadPlainly(const std::vector<std::string>& paths, int num_threads, bool direct) {
  std::vector<std::unique_ptr<OpenedFile>> files;
  std::vector<FilePiece> pieces;
  for (const std::string& path : paths) {
    files.push_back(std::make_unique<OpenedFile>(path, O_RDONLY | (direct ? O_DIRECT : 0)));
    const int64_t bytes = FileBytes(path);
    for (int64_t offset = 0; offset < bytes; offset += kPieceBytes) {
      pieces.push_back({files.back()->get(), offset, std::min(kPieceBytes, bytes - offset)});
    }
  }
  std::atomic<size_t> next = 0;
  const auto read = [&] {
    const Buffer buffer = MustBe(Buffer::Allocate(kPieceBytes));
    for (size_t i = next++; i < pieces.size(); i = next++) {
      const FilePiece& piece = pieces[i];
      // A direct read of the file's end asks for whole blocks and gets less.
      for (int64_t done = 0; done < piece.size;) {
        const ssize_t n = ::pread(piece.fd, buffer.data() + done,
                                  static_cast<size_t>(kPieceBytes - done), piece.offset + done);
        CARAVAN_CHECK(n > 0);
        done += n;
      }
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < num_threads; ++i) others.emplace_back(read);
  read();
  for (std::thread& thread : others) thread.join();
}

/// Writes `bytes`, rounded up to whole pieces, and waits until they are on the disk.
void WritePlainly(const std::string& path, int64_t bytes, bool direct) {
  const Buffer buffer = MustBe(Buffer::Allocate(kPieceBytes));
  RandomTensor(DType::kF8E4M3, 1, 0, 64).Fill(0, kPieceBytes, buffer.data());
  const OpenedFile file(path, O_WRONLY | O_CREAT | O_TRUNC | (direct ? O_DIRECT : 0));
  for (int64_t done = 0; done < bytes; done += kPieceBytes) {
    CARAVAN_CHECK(::write(file.get(), buffer.data(), kPieceBytes) == kPieceBytes);
  }
  CARAVAN_CHECK(::fsync(file.get()) == 0);
}

/// Writes to as much memory that is new from the kernel, which a load must do besides reading.
void FillFreshMemory(int64_t bytes, ThreadPool& pool) {
  Buffer memory = MustBe(Buffer::Allocate(bytes));
  memory.PreferLargePages();
  pool.ParallelFor(bytes, kPieceBytes, [&](int64_t begin, int64_t end) {
    std::memset(memory.data() + begin, 1, static_cast<size_t>(end - begin));
  });
}

/// Everything of `model` as one safetensors file, beside its config.
void WriteCheckpoint(const SyntheticModel& model, const std::string& directory) {
  nlohmann::json header;
  int64_t end = 0;
  for (const std::string& name : model.TensorNames()) {
    const TensorInfo& info = *model.Find(name);
    const int64_t begin = std::exchange(end, end + info.num_bytes());
    header[name] = {
        {"dtype", DTypeName(info.dtype)}, {"shape", info.shape}, {"data_offsets", {begin, end}}};
  }
  std::filesystem::create_directories(directory);
  std::ofstream(JoinPath(directory, "config.json")) << model.config_json();
  std::ofstream out(JoinPath(directory, "model.safetensors"), std::ios::binary);
  const std::string text = header.dump();
  const uint64_t text_bytes = text.size();
  out.write(reinterpret_cast<const char*>(&text_bytes), sizeof(text_bytes));
  out << text;
  std::vector<std::byte> bytes;
  for (const std::string& name : model.TensorNames()) {
    bytes.resize(static_cast<size_t>(model.Find(name)->num_bytes()));
    MustBe(model.Read(name, absl::MakeSpan(bytes)));
    out.write(reinterpret_cast<const char*>(bytes.data()),
              static_cast<std::streamsize>(bytes.size()));
  }
  out.close();
  CARAVAN_CHECK(out.good());
}

double SecondsOf(const std::function<void()>& body) {
  const absl::Time begin = absl::Now();
  body();
  return absl::ToDoubleSeconds(absl::Now() - begin);
}

/// By name, in every round.
class Timings {
 public:
  void Add(const std::string& name, double seconds) {
    seconds_[name].push_back(seconds);
    std::fprintf(stderr, "%s: %.2f s\n", name.c_str(), seconds);
  }
  double Median(const std::string& name) const {
    std::vector<double> sorted = seconds_.at(name);
    std::sort(sorted.begin(), sorted.end());
    const size_t half = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
  /// The fastest of those that begin so.
  double Best(const std::string& prefix) const {
    double best = -1;
    for (const auto& [name, unused] : seconds_) {
      if (!absl::StartsWith(name, prefix)) continue;
      if (best < 0 || Median(name) < best) best = Median(name);
    }
    return best;
  }
  std::vector<std::string> Names(const std::string& prefix) const {
    std::vector<std::string> names;
    for (const auto& [name, unused] : seconds_) {
      if (absl::StartsWith(name, prefix)) names.push_back(name);
    }
    return names;
  }

 private:
  std::map<std::string, std::vector<double>> seconds_;
};

/// How many weights of a plan each block format gets.
std::map<DType, int64_t> QuantizedWeights(const StoredModel& source, const PackTypes& types) {
  std::map<DType, int64_t> weights;
  for (const PackedFile& file : MustBe(PlanPack(source, types, std::nullopt)).files) {
    for (const PackedTensor& tensor : AllTensors(file)) {
      if (BlockOf(tensor.info.dtype).values > 1) {
        weights[tensor.info.dtype] += tensor.info.num_elements();
      }
    }
  }
  return weights;
}

/// Seconds that the threads take for QuantizeRow of so many weights and nothing else, by a sample
/// of the source's own.
double QuantizerSeconds(const StoredModel& source, const std::map<DType, int64_t>& weights,
                        ThreadPool& pool) {
  constexpr char kSample[] = "model.layers.1.mlp.experts.0.gate_proj.weight";
  constexpr int64_t kRows = 1024;
  const int64_t cols = source.Find(kSample)->shape[1];
  std::vector<std::byte> stored(static_cast<size_t>(kRows * cols));
  MustBe(source.ReadPart(kSample, 0, absl::MakeSpan(stored)));
  std::vector<float> values(static_cast<size_t>(kRows * cols));
  DequantizeRow(DType::kF8E4M3, stored.data(), kRows * cols, values.data());
  double seconds = 0;
  for (const auto& [dtype, count] : weights) {
    const int64_t row_bytes = DTypeBytes(dtype, cols);
    std::vector<std::byte> out(static_cast<size_t>(kRows * row_bytes));
    const double sample_seconds = SecondsOf([&, dtype = dtype] {
      pool.ParallelFor(kRows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          MustBe(QuantizeRow(dtype, values.data() + row * cols, cols, nullptr,
                             out.data() + row * row_bytes));
        }
      });
    });
    seconds += sample_seconds * static_cast<double>(count) / static_cast<double>(kRows * cols);
  }
  return seconds;
}

class StorageBench {
 public:
  StorageBench(std::string directory, int64_t model_bytes, int num_threads)
      : directory_(std::move(directory)), pool_(num_threads) {
    const std::string config = JoinPath(directory_, "config.json");
    std::ofstream(config) << ConfigOf(ExpertsOf(model_bytes)).dump();
    SyntheticModel::Options options;
    options.config_path = config;
    WriteCheckpoint(*MustBe(SyntheticModel::Create(options)), SourcePath());
    four_bits_ = MustBe(PackPreset("4bit"));
    weights_ = QuantizedWeights(*MustBe(OpenStoredModel(SourcePath())), four_bits_);
  }

  void RunRound() {
    const std::vector<std::string> source = {JoinPath(SourcePath(), "model.safetensors")};
    const int64_t source_bytes = FileBytes(source[0]);
    const std::string scratch = JoinPath(directory_, "scratch");
    for (const bool direct : {false, true}) {
      const char* const way = direct ? "O_DIRECT" : "buffered";
      Time(absl::StrCat("write, ", way), [&] { WritePlainly(scratch, source_bytes, direct); });
      std::filesystem::remove(scratch);
      DropFromCache(source);
      Time(absl::StrCat("write while as much is read, ", way), [&] {
        std::thread reader([&] { ReadPlainly(source, 1, direct); });
        WritePlainly(scratch, source_bytes, direct);
        reader.join();
      });
      std::filesystem::remove(scratch);
    }
    timings_.Add("quantizer",
                 QuantizerSeconds(*MustBe(OpenStoredModel(SourcePath())), weights_, pool_));
    DropFromCache(source);
    ReadPlainly(source, 1, /*direct=*/false);
    MeasurePack("pack, formats kept, source cached", PackTypes{});
    DropFromCache(source);
    MeasurePack("pack, formats kept, source cold", PackTypes{});
    DropFromCache(source);
    MeasurePack("pack, 4bit, source cold", four_bits_);
    DropFromCache(source);
    MeasureReading();
  }

  void Print() const {
    const double packed = gb_.at("pack, 4bit, source cold");
    const double kept = gb_.at("pack, formats kept, source cold");
    const double source =
        1e-9 * static_cast<double>(FileBytes(JoinPath(SourcePath(), "model.safetensors")));
    std::printf(
        "FP8 checkpoint of %.2f GB; packed %.2f GB with formats kept, %.2f GB as 4bit; "
        "%d threads; GB/s of what is written or read\n\n| | GB/s |\n|---|---|\n",
        source, kept, packed, pool_.num_threads());
    for (const std::string& name : timings_.Names("write")) PrintRate(name, source);
    for (const std::string& name : timings_.Names("read")) PrintRate(name, packed);
    PrintRate("fresh memory filled", packed);
    PrintRate("quantizer", packed);
    std::printf("\n| | GB/s | bound | GB/s | share |\n|---|---|---|---|---|\n");
    const double write = source / timings_.Best("write, ");
    const double copy = source / timings_.Best("write while");
    const double quantizer = packed / timings_.Median("quantizer");
    PrintShare("pack, formats kept, source cached", kept, "disk's write", write);
    PrintShare("pack, formats kept, source cold", kept, "disk's write", write);
    PrintShare("pack, formats kept, source cold", kept, "disk's write while as much is read", copy);
    PrintShare("pack, 4bit, source cold", packed, "disk's write", write);
    PrintShare("pack, 4bit, source cold", packed, "quantizer's cores", quantizer);
    PrintShare("load", packed, "disk's read", packed / timings_.Best("read, "));
  }

 private:
  std::string SourcePath() const { return JoinPath(directory_, "source"); }

  void Time(const std::string& name, const std::function<void()>& body) {
    timings_.Add(name, SecondsOf(body));
  }

  /// There is one pack at a time.
  void MeasurePack(const std::string& name, const PackTypes& types) {
    PackOptions options;
    options.output = PackedPath();
    options.types = types;
    options.num_threads = pool_.num_threads();
    std::filesystem::remove_all(options.output);
    const auto source = MustBe(OpenStoredModel(SourcePath()));
    Time(name, [&] { MustBe(Pack(*source, options)); });
    const auto packed = MustBe(PackedModel::Open(options.output));
    packed_files_.clear();
    packed_bytes_ = 0;
    for (const PackedFile& file : packed->manifest().files) {
      packed_files_.push_back(JoinPath(options.output, file.name));
      packed_bytes_ += file.bytes;
    }
    gb_[name] = 1e-9 * static_cast<double>(packed_bytes_);
  }

  void MeasureReading() {
    for (const bool direct : {false, true}) {
      for (const int threads : {1, 2, 4, 8}) {
        DropFromCache(packed_files_);
        Time(absl::StrCat("read, ", direct ? "O_DIRECT" : "buffered", ", ", threads, " threads"),
             [&] { ReadPlainly(packed_files_, threads, direct); });
      }
      DropFromCache(packed_files_);
      const auto model = MustBe(OpenStoredModel(PackedPath()));
      StageSpec whole;
      whole.end_layer = model->config().num_hidden_layers;
      whole.embeds = true;
      whole.has_head = true;
      Time("fresh memory filled", [&] { FillFreshMemory(packed_bytes_, pool_); });
      std::unique_ptr<StageWeights> weights;  // freed outside of the time
      Time("load", [&] {
        weights = MustBe(StageWeights::Load(model->config(), whole, *model,
                                            [](int64_t, int64_t) { return true; }));
      });
    }
  }

  std::string PackedPath() const { return JoinPath(directory_, "packed"); }

  void PrintRate(const std::string& name, double gb) const {
    std::printf("| %s | %.3f |\n", name.c_str(), gb / timings_.Median(name));
  }
  void PrintShare(const std::string& name, double gb, const char* bound, double bound_rate) const {
    const double rate = gb / timings_.Median(name);
    std::printf("| %s | %.3f | %s | %.3f | %.0f%% |\n", name.c_str(), rate, bound, bound_rate,
                100 * rate / bound_rate);
  }

  const std::string directory_;
  ThreadPool pool_;
  PackTypes four_bits_;
  std::map<DType, int64_t> weights_;       // of the 4bit pack, by format
  std::vector<std::string> packed_files_;  // of the newest pack
  int64_t packed_bytes_ = 0;
  std::map<std::string, double> gb_;  // of packs, by what was measured
  Timings timings_;
};

int Main(int argc, char** argv) {
  std::string parent = ".", size = "2GiB";
  int rounds = 3, threads = static_cast<int>(std::thread::hardware_concurrency());
  CLI::App app("Packing and loading beside the disk's rates and the quantizer's.");
  app.add_option("--dir", parent, "Where to make a temporary directory");
  app.add_option("--size", size, "Of the checkpoint");
  app.add_option("--rounds", rounds)->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads)->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  const int64_t model_bytes = MustBe(ParseByteSize(size));
  std::string directory = JoinPath(parent, "storage-bench-XXXXXX");
  if (::mkdtemp(directory.data()) == nullptr) MustBe(absl::ErrnoToStatus(errno, directory));
  {
    StorageBench bench(directory, model_bytes, threads);
    for (int i = 0; i < rounds; ++i) bench.RunRound();
    bench.Print();
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return 0;
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) { return caravan::Main(argc, argv); }
