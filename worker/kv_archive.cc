#include "worker/kv_archive.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "base/output_file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr char kMagic[8] = {'C', 'R', 'V', 'N', 'K', 'V', '1', '\n'};
constexpr char kSuffix[] = ".kv";

// A file: this, the layers' hashes, the layers.
struct Header {
  char magic[sizeof(kMagic)];
  int32_t first_layer;
  int32_t num_layers;
  int64_t layer_bytes;
};
using LayerHash = uint64_t;

int64_t FileBytes(int64_t num_layers, int64_t layer_bytes) {
  return static_cast<int64_t>(sizeof(Header)) +
         num_layers * (static_cast<int64_t>(sizeof(LayerHash)) + layer_bytes);
}

/// Blocks that may wait to be written. They take memory, and the page cache takes them at once.
constexpr size_t kWaitingBlocks = 2;

struct FoundFile {
  fs::file_time_type time;
  KvBlockName name;
  std::string path;
  int64_t bytes = 0;
  int first_layer = 0;
  int num_layers = 0;
};

/// nullopt: no file of an archive. Its name is NAME-FIRST-NUM.kv.
std::optional<FoundFile> FromPath(const fs::path& path) {
  if (path.extension() != kSuffix) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(path.stem().string(), '-');
  FoundFile found;
  found.path = path.string();
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &found.first_layer) ||
      !absl::SimpleAtoi(parts[2], &found.num_layers)) {
    return std::nullopt;
  }
  const std::optional<KvBlockName> name = KvBlockNameFromHex(parts[0]);
  if (!name.has_value()) return std::nullopt;
  found.name = *name;
  return found;
}

/// What a process that is no more was writing (OutputFile): NAME-FIRST-NUM.kv.PID.new.
bool IsLeftover(const fs::path& path) {
  if (path.extension() != ".new") return false;
  const fs::path with_pid = path.stem();
  int pid = 0;
  return FromPath(with_pid.stem()).has_value() &&
         absl::SimpleAtoi(with_pid.extension().string().substr(1), &pid) &&
         !FileExists(absl::StrCat("/proc/", pid));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvArchive>> KvArchive::Open(const Options& options) {
  CARAVAN_CHECK(options.num_layers > 0 && options.layer_bytes > 0);
  const int64_t block_bytes = FileBytes(options.num_layers, options.layer_bytes);
  if (options.budget_bytes < block_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV archive's budget of ", FormatByteSize(options.budget_bytes),
                     " holds no block: one of this stage takes ", FormatByteSize(block_bytes)));
  }
  std::error_code error;
  fs::create_directories(JoinPath(options.directory, options.format), error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(options.directory, ": ", error.message()));
  }
  std::vector<FoundFile> found;
  std::vector<fs::path> leftovers;
  fs::recursive_directory_iterator each(options.directory, error);
  for (; !error && each != fs::end(each); each.increment(error)) {
    if (IsLeftover(each->path())) leftovers.push_back(each->path());
    std::optional<FoundFile> file = FromPath(each->path());
    if (!file.has_value()) continue;
    // One that another process removes meanwhile is not there.
    std::error_code gone;
    file->bytes = static_cast<int64_t>(each->file_size(gone));
    if (!gone) file->time = each->last_write_time(gone);
    if (!gone) found.push_back(*std::move(file));
  }
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(options.directory, ": ", error.message()));
  }
  for (const fs::path& path : leftovers) fs::remove(path, error);
  std::sort(found.begin(), found.end(),
            [](const FoundFile& a, const FoundFile& b) { return a.time < b.time; });
  Files files;
  for (FoundFile& file : found) {
    files.push_back(
        {file.name,
         {std::move(file.path), file.bytes, file.first_layer, file.num_layers, file.time}});
  }
  return std::unique_ptr<KvArchive>(new KvArchive(options, std::move(files)));
}

KvArchive::KvArchive(const Options& options, Files files)
    : options_(options),
      capacity_(options.budget_bytes / FileBytes(options.num_layers, options.layer_bytes)),
      queue_(kWaitingBlocks),
      writer_("kv-archive", [this] { Write(); }) {
  MutexLock lock(&mu_);
  for (auto& [name, file] : files) AddLocked(name, std::move(file));
}

KvArchive::~KvArchive() {
  queue_.Close();
  writer_.Join();
}

std::string KvArchive::PathOf(const KvBlockName& name) const {
  return JoinPath(
      JoinPath(options_.directory, options_.format),
      absl::StrCat(name.Hex(), "-", options_.first_layer, "-", options_.num_layers, kSuffix));
}

bool KvArchive::Covers(const File& file) const {
  return file.first_layer <= options_.first_layer &&
         options_.first_layer + options_.num_layers <= file.first_layer + file.num_layers &&
         file.bytes == FileBytes(file.num_layers, options_.layer_bytes) &&
         fs::path(file.path).parent_path().filename() == options_.format;
}

void KvArchive::AddLocked(const KvBlockName& name, File file) {
  bytes_ += file.bytes;
  files_.emplace_back(name, std::move(file));
  const auto added = std::prev(files_.end());
  if (Covers(added->second)) by_name_[name] = added;
  while (bytes_ > options_.budget_bytes) {
    const auto oldest = files_.begin();
    std::error_code ignored;  // somebody else may have removed it
    const fs::file_time_type time = fs::last_write_time(oldest->second.path, ignored);
    if (!ignored && time > oldest->second.time) {  // or used it
      oldest->second.time = time;
      files_.splice(files_.end(), files_, oldest);
      continue;
    }
    fs::remove(oldest->second.path, ignored);
    bytes_ -= oldest->second.bytes;
    const auto named = by_name_.find(oldest->first);
    if (named != by_name_.end() && named->second == oldest) by_name_.erase(named);
    files_.erase(oldest);
  }
}

void KvArchive::TouchLocked(Files::iterator file) {
  file->second.time = fs::file_time_type::clock::now();
  std::error_code ignored;
  fs::last_write_time(file->second.path, file->second.time, ignored);
  files_.splice(files_.end(), files_, file);
}

std::vector<KvBlockName> KvArchive::Names(size_t limit) const {
  MutexLock lock(&mu_);
  std::vector<KvBlockName> names;
  for (auto it = files_.rbegin(); it != files_.rend() && names.size() < limit; ++it) {
    const auto named = by_name_.find(it->first);
    if (named != by_name_.end() && named->second == std::prev(it.base()))
      names.push_back(it->first);
  }
  std::reverse(names.begin(), names.end());
  return names;
}

absl::Status KvArchive::Keep(const KvBlockName& name, CopyOut copy) {
  {
    MutexLock lock(&mu_);
    if (waiting_.contains(name)) return absl::OkStatus();
    if (const auto named = by_name_.find(name); named != by_name_.end()) {
      TouchLocked(named->second);
      return absl::OkStatus();
    }
  }
  Block block;
  block.name = name;
  block.layers.resize(static_cast<size_t>(options_.num_layers * options_.layer_bytes));
  const absl::Span<std::byte> layers = absl::MakeSpan(block.layers);
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    CARAVAN_RETURN_IF_ERROR(
        copy(layer, layers.subspan(static_cast<size_t>(layer * options_.layer_bytes),
                                   static_cast<size_t>(options_.layer_bytes))));
  }
  {
    MutexLock lock(&mu_);
    waiting_.insert(name);
  }
  queue_.Push(std::move(block));
  return absl::OkStatus();
}

void KvArchive::Write() {
  while (const std::optional<Block> block = queue_.Pop()) {
    const absl::Status written = WriteBlock(*block);
    File file = {PathOf(block->name),
                 FileBytes(options_.num_layers, options_.layer_bytes),
                 options_.first_layer,
                 options_.num_layers,
                 {}};
    std::error_code ignored;
    file.time = fs::last_write_time(file.path, ignored);
    MutexLock lock(&mu_);
    if (written.ok()) {
      AddLocked(block->name, std::move(file));
    } else if (!warned_) {
      warned_ = true;
      LogWarning("kv_not_archived", {{"why", written.message()}});
    }
    waiting_.erase(block->name);
    written_.SignalAll();
  }
}

absl::Status KvArchive::WriteBlock(const Block& block) {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.first_layer = options_.first_layer;
  header.num_layers = options_.num_layers;
  header.layer_bytes = options_.layer_bytes;
  std::vector<LayerHash> hashes;
  for (int layer = 0; layer < options_.num_layers; ++layer) {
    hashes.push_back(XXH3_64bits(block.layers.data() + layer * options_.layer_bytes,
                                 static_cast<size_t>(options_.layer_bytes)));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file,
                           OutputFile::Create(PathOf(block.name)));
  const auto write = [&file](const void* data, size_t bytes) {
    return file->Write({static_cast<const char*>(data), bytes});
  };
  CARAVAN_RETURN_IF_ERROR(write(&header, sizeof(header)));
  CARAVAN_RETURN_IF_ERROR(write(hashes.data(), hashes.size() * sizeof(LayerHash)));
  CARAVAN_RETURN_IF_ERROR(write(block.layers.data(), block.layers.size()));
  return file->Commit();
}

absl::Status KvArchive::Restore(const KvBlockName& name, CopyIn copy) {
  File file;
  {
    MutexLock lock(&mu_);
    while (waiting_.contains(name)) written_.Wait(&mu_);
    const auto named = by_name_.find(name);
    if (named == by_name_.end()) {
      return absl::NotFoundError(absl::StrCat("no KV block ", name.Hex(), " is archived here"));
    }
    TouchLocked(named->second);
    file = named->second->second;
  }
  absl::Status copied;
  const absl::Status read = Read(file, [&](int layer, absl::Span<const std::byte> from) {
    return copied = copy(layer, from);
  });
  if (!copied.ok() || read.ok()) return copied;
  Remove(name);
  return absl::NotFoundError(absl::StrCat("an archived KV block: ", read.message()));
}

absl::Status KvArchive::Read(const File& file, CopyIn layer) const {
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> in, ReadableFile::Open(file.path));
  Header header;
  CARAVAN_RETURN_IF_ERROR(
      in->Read(0, absl::MakeSpan(reinterpret_cast<std::byte*>(&header), sizeof(header))));
  const int first = options_.first_layer - file.first_layer;
  std::vector<LayerHash> hashes(static_cast<size_t>(options_.num_layers));
  CARAVAN_RETURN_IF_ERROR(in->Read(
      static_cast<int64_t>(sizeof(Header) + static_cast<size_t>(first) * sizeof(LayerHash)),
      absl::MakeSpan(reinterpret_cast<std::byte*>(hashes.data()),
                     hashes.size() * sizeof(LayerHash))));
  const absl::Status wrong =
      absl::DataLossError(absl::StrCat(file.path, ": is not what was written"));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 ||
      header.first_layer != file.first_layer || header.num_layers != file.num_layers ||
      header.layer_bytes != options_.layer_bytes) {
    return wrong;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(options_.layer_bytes));
  for (int i = 0; i < options_.num_layers; ++i) {
    CARAVAN_RETURN_IF_ERROR(in->Read(
        FileBytes(file.num_layers, 0) + (first + i) * options_.layer_bytes, absl::MakeSpan(bytes)));
    if (XXH3_64bits(bytes.data(), bytes.size()) != hashes[static_cast<size_t>(i)]) return wrong;
    CARAVAN_RETURN_IF_ERROR(layer(i, bytes));
  }
  return absl::OkStatus();
}

void KvArchive::Remove(const KvBlockName& name) {
  MutexLock lock(&mu_);
  const auto named = by_name_.find(name);
  if (named == by_name_.end()) return;
  std::error_code ignored;
  fs::remove(named->second->second.path, ignored);
  bytes_ -= named->second->second.bytes;
  files_.erase(named->second);
  by_name_.erase(named);
}

void KvArchive::Flush() {
  MutexLock lock(&mu_);
  while (!waiting_.empty()) written_.Wait(&mu_);
}

}  // namespace caravan
