#include "model/pack/packer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/file.h"
#include "base/int_math.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "model/pack/file_hash.h"
#include "model/pack/matrix_packer.h"
#include "model/pack/pack_file_writer.h"
#include "model/tensor_table.h"
#include "model/text_files.h"

namespace caravan {
namespace {

/// Lays tensors out in a file or an expert's run.
class Placer {
 public:
  Placer(const TensorSource& source, const PackTypes& types) : source_(source), types_(types) {}

  /// Adds a tensor, and its scales where it is to be FP8, as `name`.
  void Add(const TensorSpec& spec, const std::string& name, std::vector<PackedTensor>& tensors,
           int64_t& end) const {
    PackedTensor tensor;
    tensor.name = name;
    tensor.info = PackedInfo(types_, spec, *source_.Find(spec.name));
    const bool is_fp8 = tensor.info.dtype == DType::kF8E4M3;
    Place(std::move(tensor), tensors, end);
    if (is_fp8) Place({ScaleName(name), ScaleInfo(spec), 0}, tensors, end);
  }

 private:
  static void Place(PackedTensor tensor, std::vector<PackedTensor>& tensors, int64_t& end) {
    tensor.offset = RoundUp(end, kTensorAlignment);
    end = tensor.offset + tensor.info.num_bytes();
    tensors.push_back(std::move(tensor));
  }

  const TensorSource& source_;
  const PackTypes& types_;
};

/// A file of these tensors; routed experts come last, in runs of one shape.
absl::StatusOr<PackedFile> PlanFile(const TensorSource& source, const PackTypes& types,
                                    std::string name, const std::vector<TensorSpec>& specs) {
  CARAVAN_RETURN_IF_ERROR(CheckTensors(source, specs).status());
  const Placer placer(source, types);
  PackedFile file;
  file.name = std::move(name);
  std::vector<const TensorSpec*> experts;  // expert by expert
  for (const TensorSpec& spec : specs) {
    if (source.Find(spec.name)->layout != MatrixLayout::kRowMajor) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", spec.name, " is packed already; pack the checkpoint it is of"));
    }
    if (spec.tensor_class == TensorClass::kRoutedExpert) {
      experts.push_back(&spec);
    } else {
      placer.Add(spec, spec.name, file.tensors, file.bytes);
    }
  }
  if (experts.empty()) return file;
  // "model.layers.3.mlp.experts." "0" "." "gate_proj.weight"
  const absl::string_view first = experts[0]->name;
  const size_t number = first.rfind(".0.");  // layer 0 may have experts too
  CARAVAN_CHECK(number != absl::string_view::npos &&
                absl::EndsWith(first.substr(0, number), ".experts"));
  PackedExperts runs;
  runs.prefix = std::string(first.substr(0, number + 1));
  runs.offset = RoundUp(file.bytes, kExpertAlignment);
  const std::string first_prefix = runs.prefix + "0.";
  int64_t run_bytes = 0;
  size_t matrices = 0;  // of an expert
  for (; matrices < experts.size(); ++matrices) {
    const TensorSpec& spec = *experts[matrices];
    if (!absl::StartsWith(spec.name, first_prefix)) break;
    placer.Add(spec, spec.name.substr(first_prefix.size()), runs.tensors, run_bytes);
  }
  runs.stride = RoundUp(run_bytes, kExpertAlignment);
  CARAVAN_CHECK(experts.size() % matrices == 0);
  runs.count = static_cast<int64_t>(experts.size() / matrices);
  for (size_t i = matrices; i < experts.size(); ++i) {
    if (source.Find(experts[i]->name)->dtype != source.Find(experts[i % matrices]->name)->dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", experts[i]->name, " has dtype ",
                       DTypeName(source.Find(experts[i]->name)->dtype), ", but that of expert 0 ",
                       DTypeName(source.Find(experts[i % matrices]->name)->dtype)));
    }
  }
  file.bytes = runs.offset + runs.count * runs.stride;
  file.experts = std::move(runs);
  return file;
}

PackOrigin OriginOf(const StoredModel& source, const PackOptions& options) {
  PackOrigin origin;
  origin.path = std::filesystem::absolute(source.path()).lexically_normal().string();
  origin.fingerprint = absl::StrFormat("%016x", source.fingerprint());
  origin.options = DescribePackTypes(options.types);
  if (options.layers.has_value()) {
    absl::StrAppend(&origin.options, ", layers ", options.layers->first, "-",
                    options.layers->second - 1);
  }
  if (options.importance != nullptr) {
    absl::StrAppendFormat(&origin.options, ", imatrix %016x", options.importance->fingerprint());
  }
  return origin;
}

absl::Status CheckImportance(const StoredModel& source, const Importance& importance,
                             const PackManifest& plan) {
  bool matters = false;
  for (const PackedFile& file : plan.files) {
    for (const PackedTensor& tensor : AllTensors(file)) {
      const DType dtype = tensor.info.dtype;
      if (BlockOf(dtype).values == 1 || source.Find(tensor.name)->dtype == dtype) continue;
      matters = true;
      const Importance::Columns* const columns = importance.Find(tensor.name);
      const auto wrong = [&](absl::string_view what) {
        return absl::InvalidArgumentError(
            absl::StrCat(importance.path(), ": tensor ", tensor.name, " ", what));
      };
      if (columns == nullptr) return wrong("is missing");
      const int64_t cols = static_cast<int64_t>(columns->mean_square.size());
      if (cols == tensor.info.shape[1]) continue;
      return wrong(absl::StrCat("has ", cols, " columns, but the matrix ", tensor.info.shape[1]));
    }
  }
  if (matters) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      importance.path(), ": nothing is quantized to a block format, so importance has no effect"));
}

/// The plan's files that an unfinished pack at `path` holds already.
absl::StatusOr<std::vector<PackedFile>> ReadUnfinished(const std::string& path,
                                                       const PackOrigin& origin,
                                                       const PackManifest& plan,
                                                       const std::string& directory) {
  std::vector<PackedFile> done;
  if (!FileExists(path)) return done;
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxPackManifestBytes));
  CARAVAN_ASSIGN_OR_RETURN(PackManifest unfinished, ParsePackManifest(text, path));
  // Weights are not compared, but a source of the same path and fingerprint has the same ones
  // unless somebody changed its files in between.
  PackManifest expected;
  expected.origin = origin;
  for (size_t i = 0; i < unfinished.files.size() && i < plan.files.size(); ++i) {
    expected.files.push_back(plan.files[i]);
    PackedFile& file = expected.files.back();
    file.hash = unfinished.files[i].hash;
    if (file.experts.has_value() && unfinished.files[i].experts.has_value()) {
      file.experts->hashes = unfinished.files[i].experts->hashes;
    }
  }
  if (PackManifestToJson(expected) != PackManifestToJson(unfinished)) {
    const PackOrigin of = unfinished.origin.value_or(PackOrigin{});
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": holds an unfinished pack of ", of.path, " (fingerprint ",
                     of.fingerprint, "; ", of.options, "), not of ", origin.path, " (fingerprint ",
                     origin.fingerprint, "; ", origin.options, "); remove it, or go on with that"));
  }
  for (PackedFile& file : unfinished.files) {
    const std::string file_path = JoinPath(directory, file.name);
    std::error_code error;
    if (std::filesystem::file_size(file_path, error) != static_cast<uintmax_t>(file.bytes)) break;
    done.push_back(std::move(file));
  }
  return done;
}

/// Keeps other processes from packing into the same directory.
class DirectoryLock {
 public:
  DirectoryLock() = default;
  ~DirectoryLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  /// Errors: FailedPrecondition - another has it; InvalidArgument - it cannot be opened.
  absl::Status Take(const std::string& directory) {
    fd_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0) {
      return absl::InvalidArgumentError(absl::ErrnoToStatus(errno, directory).message());
    }
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(directory, ": another process is packing into it"));
  }

 private:
  int fd_ = -1;
};

class Packing {
 public:
  Packing(const StoredModel& source, const PackOptions& options, PackManifest plan)
      : source_(source), options_(options), plan_(std::move(plan)), pool_(options.num_threads) {
    for (const PackedFile& file : plan_.files) total_bytes_ += file.bytes;
  }

  absl::Status Run() {
    // What could refuse the model is looked at before hours of work.
    CARAVAN_RETURN_IF_ERROR(ReadTexts());
    CARAVAN_RETURN_IF_ERROR(Prepare());
    PackManifest manifest;
    manifest.origin = OriginOf(source_, options_);
    CARAVAN_ASSIGN_OR_RETURN(
        manifest.files, ReadUnfinished(UnfinishedPath(), *manifest.origin, plan_, options_.output));
    for (const PackedFile& file : manifest.files) done_bytes_ += file.bytes;
    CARAVAN_RETURN_IF_ERROR(CheckRoom());
    CARAVAN_RETURN_IF_ERROR(WritePackFile(UnfinishedPath(), PackManifestToJson(manifest)));
    for (size_t i = manifest.files.size(); i < plan_.files.size(); ++i) {
      PackedFile file = plan_.files[i];
      CARAVAN_RETURN_IF_ERROR(WriteFile(file));
      manifest.files.push_back(std::move(file));
      CARAVAN_RETURN_IF_ERROR(WritePackFile(UnfinishedPath(), PackManifestToJson(manifest)));
    }
    CARAVAN_RETURN_IF_ERROR(WriteTexts(manifest));
    // The last one: now it is a pack.
    manifest.origin.reset();
    CARAVAN_RETURN_IF_ERROR(
        WritePackFile(JoinPath(options_.output, kPackManifestName), PackManifestToJson(manifest)));
    std::error_code ignored;
    std::filesystem::remove(UnfinishedPath(), ignored);
    if (options_.progress) options_.progress(total_bytes_, total_bytes_);
    return absl::OkStatus();
  }

 private:
  std::string UnfinishedPath() const { return JoinPath(options_.output, kUnfinishedPackName); }

  absl::Status Prepare() {
    if (options_.output.empty()) {
      return absl::InvalidArgumentError("the directory to pack into has no name");
    }
    std::error_code error;
    // A pack that is not finished would keep its own source from being opened.
    if (std::filesystem::equivalent(options_.output, source_.path(), error)) {
      return absl::InvalidArgumentError(absl::StrCat(
          options_.output, ": holds what is to be packed; pack into another directory"));
    }
    std::filesystem::create_directories(options_.output, error);
    if (error) {
      return absl::InvalidArgumentError(absl::StrCat(options_.output, ": ", error.message()));
    }
    CARAVAN_RETURN_IF_ERROR(lock_.Take(options_.output));
    // Under the lock: another process may have finished one just now.
    if (FileExists(JoinPath(options_.output, kPackManifestName))) {
      return absl::FailedPreconditionError(
          absl::StrCat(options_.output, ": holds a packed model already"));
    }
    // What a killed process left takes room.
    for (const PackedFile& file : plan_.files) {
      PackFileWriter::RemovePartial(JoinPath(options_.output, file.name));
    }
    return absl::OkStatus();
  }

  absl::Status CheckRoom() const {
    std::error_code error;
    const std::filesystem::space_info space = std::filesystem::space(options_.output, error);
    if (error) return absl::DataLossError(absl::StrCat(options_.output, ": ", error.message()));
    const int64_t needed = total_bytes_ - done_bytes_;
    if (static_cast<uintmax_t>(needed) <= space.available) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.output, ": ", options_.doing, " takes ", FormatByteSize(needed),
                     ", but the disk has only ",
                     FormatByteSize(static_cast<int64_t>(space.available)), " left"));
  }

  /// Fills in the file's hashes.
  absl::Status WriteFile(PackedFile& file) {
    CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<PackFileWriter> writer,
                             PackFileWriter::Create(JoinPath(options_.output, file.name)));
    MatrixPacker packer(&source_, options_.importance, &pool_);
    const auto write = [&](const std::vector<PackedTensor>& tensors) -> absl::Status {
      for (const PackedTensor& tensor : tensors) {
        CARAVAN_RETURN_IF_ERROR(writer->PadTo(tensor.offset));
        const absl::Status packed = packer.Pack(
            tensor.name, tensor.info, [&](absl::Span<const std::byte> bytes) -> absl::Status {
              if (options_.progress &&
                  !options_.progress(done_bytes_ + writer->bytes(), total_bytes_)) {
                return absl::CancelledError(
                    absl::StrCat(options_.doing, " was stopped; the same command goes on with it"));
              }
              return writer->Write(bytes);
            });
        // A weight that cannot be packed; what disks did wrong names its file.
        if (absl::IsInvalidArgument(packed)) return Annotate(packed, source_.path());
        CARAVAN_RETURN_IF_ERROR(packed);
      }
      return absl::OkStatus();
    };
    CARAVAN_RETURN_IF_ERROR(write(file.tensors));
    if (file.experts.has_value()) {
      PackedExperts& experts = *file.experts;
      CARAVAN_RETURN_IF_ERROR(writer->PadTo(experts.offset));
      for (int64_t e = 0; e < experts.count; ++e) {
        writer->BeginPart();
        CARAVAN_RETURN_IF_ERROR(write(TensorsOfExpert(experts, e)));
        CARAVAN_RETURN_IF_ERROR(writer->PadTo(experts.offset + (e + 1) * experts.stride));
        experts.hashes.push_back(writer->PartHash());
      }
    }
    CARAVAN_RETURN_IF_ERROR(writer->PadTo(file.bytes));
    CARAVAN_ASSIGN_OR_RETURN(file.hash, writer->Commit());
    done_bytes_ += file.bytes;
    return absl::OkStatus();
  }

  absl::Status ReadTexts() {
    texts_.emplace_back("config.json", source_.config_json());
    for (const char* name : kTextFileNames) {
      absl::StatusOr<TextFile> file = source_.ReadText(name);
      if (absl::IsNotFound(file.status())) continue;
      if (absl::IsUnimplemented(file.status())) {
        LogWarning("text_file_not_packed", {{"name", name}, {"why", file.status().message()}});
        continue;
      }
      if (!file.ok()) return file.status();
      texts_.emplace_back(name, std::move(file->text));
    }
    return absl::OkStatus();
  }

  /// Adds them to the manifest.
  absl::Status WriteTexts(PackManifest& manifest) const {
    for (const auto& [name, text] : texts_) {
      CARAVAN_RETURN_IF_ERROR(WritePackFile(JoinPath(options_.output, name), text));
      manifest.texts.push_back(
          {name, HashOf(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(text.data()),
                                            text.size()))});
    }
    return absl::OkStatus();
  }

  const StoredModel& source_;
  const PackOptions& options_;
  const PackManifest plan_;
  DirectoryLock lock_;
  std::vector<std::pair<std::string, std::string>> texts_;  // name and contents
  ThreadPool pool_;
  int64_t total_bytes_ = 0;
  int64_t done_bytes_ = 0;  // in files that are whole
};

}  // namespace

absl::StatusOr<PackManifest> PlanPack(const StoredModel& source, const PackTypes& types,
                                      const std::optional<std::pair<int, int>>& layers) {
  const ModelConfig& config = source.config();
  const auto [first, end] = layers.value_or(std::pair(0, config.num_hidden_layers));
  if (first < 0 || end > config.num_hidden_layers || first >= end) {
    return absl::InvalidArgumentError(absl::StrCat("--layers ", first, "-", end - 1,
                                                   ": the model has layers 0-",
                                                   config.num_hidden_layers - 1));
  }
  PackManifest plan;
  const auto add = [&](std::string name, const std::vector<TensorSpec>& specs) -> absl::Status {
    absl::StatusOr<PackedFile> file = PlanFile(source, types, std::move(name), specs);
    if (!file.ok()) return Annotate(file.status(), source.path());
    plan.files.push_back(*std::move(file));
    return absl::OkStatus();
  };
  if (first == 0) CARAVAN_RETURN_IF_ERROR(add("embedding.bin", EmbeddingTensors(config)));
  for (int layer = first; layer < end; ++layer) {
    CARAVAN_RETURN_IF_ERROR(
        add(absl::StrFormat("layer-%03d.bin", layer), LayerTensors(config, layer)));
  }
  if (end < config.num_hidden_layers) return plan;
  std::vector<TensorSpec> head = HeadTensors(config);
  // A tied projection is in the embedding's file, if there is one.
  if (config.tie_word_embeddings && first == 0) head.pop_back();
  CARAVAN_RETURN_IF_ERROR(add("head.bin", head));
  if (config.num_nextn_predict_layers == 0) return plan;
  const std::vector<TensorSpec> mtp = MtpTensors(config);
  // Checkpoints may leave it out, whatever their config says.
  if (source.Find(mtp[0].name) != nullptr) CARAVAN_RETURN_IF_ERROR(add("mtp.bin", mtp));
  return plan;
}

absl::Status Pack(const StoredModel& source, const PackOptions& options) {
  CARAVAN_ASSIGN_OR_RETURN(PackManifest plan, PlanPack(source, options.types, options.layers));
  if (options.importance != nullptr) {
    CARAVAN_RETURN_IF_ERROR(CheckImportance(source, *options.importance, plan));
  }
  return Packing(source, options, std::move(plan)).Run();
}

}  // namespace caravan
