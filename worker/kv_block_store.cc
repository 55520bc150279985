#include "worker/kv_block_store.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <optional>
#include <system_error>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/byte_size.h"
#include "base/check.h"
#include "base/file.h"
#include "base/output_file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr char kMagic[8] = {'C', 'R', 'V', 'N', 'K', 'V', '1', '\n'};
constexpr char kSuffix[] = ".kv";
constexpr char kLockName[] = "kv.lock";

// A disk that was full may have more room by now: of each byte written so much is tried beyond what
// it had. So a disk that stays full refuses one write in 16.
constexpr int64_t kRoomRegained = 16;

// A file: this, the layers' hashes, the layers.
struct Header {
  char magic[sizeof(kMagic)];
  int32_t first_layer;
  int32_t num_layers;
  int64_t layer_bytes;
};
using LayerHash = uint64_t;

/// nullopt: no file of an archive. Its name is NAME-FIRST-NUM.kv.
std::optional<KvBlockPart> FromFileName(const fs::path& path) {
  if (path.extension() != kSuffix) return std::nullopt;
  const std::vector<std::string> parts = absl::StrSplit(path.stem().string(), '-');
  KvBlockPart found;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &found.layers.first) ||
      !absl::SimpleAtoi(parts[2], &found.layers.num) || found.layers.first < 0 ||
      found.layers.num < 1 || found.layers.first > kMostKvLayers ||
      found.layers.num > kMostKvLayers) {
    return std::nullopt;
  }
  const std::optional<KvBlockName> name = KvBlockNameFromHex(parts[0]);
  if (!name.has_value()) return std::nullopt;
  found.name = *name;
  return found;
}

/// What an earlier process was writing when it was killed (OutputFile): NAME-FIRST-NUM.kv.PID.new.
/// PID says nothing: in a container each life may have the same.
bool IsLeftover(const fs::path& path) {
  if (path.extension() != ".new") return false;
  const fs::path with_pid = path.stem();
  int pid = 0;
  return FromFileName(with_pid.stem()).has_value() &&
         absl::SimpleAtoi(with_pid.extension().string().substr(1), &pid);
}

}  // namespace

uint64_t HashKvLayer(absl::Span<const std::byte> layer) {
  return XXH3_64bits(layer.data(), layer.size());
}

int64_t KvBlockStore::FileBytes(const KvFormat& format, int num_layers) {
  return static_cast<int64_t>(sizeof(Header)) +
         num_layers * (static_cast<int64_t>(sizeof(LayerHash)) + format.layer_bytes());
}

absl::StatusOr<std::unique_ptr<KvBlockStore>> KvBlockStore::Open(const std::string& directory,
                                                                 int64_t budget_bytes) {
  CARAVAN_ASSIGN_OR_RETURN(DirectoryLock lock, DirectoryLock::Take(directory, kLockName));
  auto store = absl::WrapUnique(new KvBlockStore(directory, budget_bytes, std::move(lock)));
  CARAVAN_RETURN_IF_ERROR(store->LookThrough());
  return store;
}

absl::Status KvBlockStore::LookThrough() {
  std::vector<File> found;
  std::vector<fs::path> unwanted;
  std::error_code error;
  // Only directories of its own: others may be anybody's, and closed to it, as a disk's lost+found.
  fs::directory_iterator directories(directory_, error);
  for (; !error && directories != fs::end(directories); directories.increment(error)) {
    const std::optional<KvFormat> format = ParseKvFormat(directories->path().filename().string());
    std::error_code unknown;
    if (!format.has_value() || !directories->is_directory(unknown)) continue;
    fs::directory_iterator files(directories->path(), error);
    for (; !error && files != fs::end(files); files.increment(error)) {
      const fs::path& path = files->path();
      if (IsLeftover(path)) unwanted.push_back(path);
      const std::optional<KvBlockPart> part = FromFileName(path);
      if (!part.has_value()) continue;
      File file = {{*format, part->name}, part->layers, {}};
      std::error_code gone;  // somebody may remove files
      const auto bytes = static_cast<int64_t>(files->file_size(gone));
      if (!gone) file.time = files->last_write_time(gone);
      if (gone) continue;
      if (bytes == file.bytes()) {
        found.push_back(std::move(file));
      } else {
        unwanted.push_back(path);  // it is broken
      }
    }
    if (error) break;
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat(directory_, ": ", error.message()));
  for (const fs::path& path : unwanted) fs::remove(path, error);
  std::sort(found.begin(), found.end(),
            [](const File& a, const File& b) { return a.time < b.time; });
  MutexLock lock(&mu_);
  for (File& file : found) AddLocked(std::move(file));
  return absl::OkStatus();
}

std::string KvBlockStore::PathOf(const Key& key, const LayerRange& layers) const {
  return JoinPath(JoinPath(directory_, key.format.ToString()),
                  absl::StrCat(key.name.Hex(), "-", layers.first, "-", layers.num, kSuffix));
}

void KvBlockStore::AddLocked(File file) {
  std::vector<Files::iterator>& same = by_key_[file.key];
  for (size_t i = same.size(); i > 0; --i) {
    if (!file.layers.Contains(same[i - 1]->layers)) continue;
    const Files::iterator within = same[i - 1];
    same.erase(same.begin() + static_cast<ptrdiff_t>(i - 1));
    bytes_ -= within->bytes();
    std::error_code ignored;
    if (within->layers != file.layers) fs::remove(PathOf(within->key, within->layers), ignored);
    files_.erase(within);
  }
  bytes_ += file.bytes();
  files_.push_back(std::move(file));
  same.push_back(std::prev(files_.end()));
  while (bytes_ > room_bytes_) RemoveLocked(files_.begin());
}

void KvBlockStore::RemoveLocked(Files::iterator file) {
  std::error_code ignored;  // somebody else may have removed it
  fs::remove(PathOf(file->key, file->layers), ignored);
  bytes_ -= file->bytes();
  const auto named = by_key_.find(file->key);
  std::erase(named->second, file);
  if (named->second.empty()) by_key_.erase(named);
  files_.erase(file);
}

void KvBlockStore::Remove(const File& file) {
  MutexLock lock(&mu_);
  const auto named = by_key_.find(file.key);
  if (named == by_key_.end()) return;
  for (const Files::iterator each : named->second) {
    if (each->layers != file.layers) continue;
    RemoveLocked(each);
    return;
  }
}

void KvBlockStore::TouchLocked(Files::iterator file) {
  file->time = fs::file_time_type::clock::now();
  std::error_code ignored;
  fs::last_write_time(PathOf(file->key, file->layers), file->time, ignored);
  files_.splice(files_.end(), files_, file);
}

std::vector<LayerRange> KvBlockStore::Use(const KvFormat& format, const KvBlockPart& part) {
  MutexLock lock(&mu_);
  return UseLocked(format, part);
}

std::vector<LayerRange> KvBlockStore::UseLocked(const KvFormat& format, const KvBlockPart& part) {
  std::vector<LayerRange> there;
  const auto named = by_key_.find({format, part.name});
  if (named != by_key_.end()) {
    for (const Files::iterator file : named->second) {
      if (Overlap(file->layers, part.layers).num == 0) continue;
      there.push_back(file->layers);
      TouchLocked(file);
    }
  }
  return Without(part.layers, there);
}

absl::Status KvBlockStore::Write(const KvFormat& format, const KvBlockPart& part,
                                 absl::Span<const std::byte> layers) {
  CARAVAN_CHECK(std::ssize(layers) == part.layers.num * format.layer_bytes());
  File file = {{format, part.name}, part.layers, {}};
  if (file.bytes() > budget_bytes_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV archive's budget of ", FormatByteSize(budget_bytes_),
                     " holds no block of ", FormatByteSize(file.bytes())));
  }
  const std::string path = PathOf(file.key, file.layers);
  {
    MutexLock lock(&mu_);
    while (writing_.contains(path)) written_.Wait(&mu_);  // who came first writes the same
    if (UseLocked(format, part).empty()) return absl::OkStatus();
    writing_.insert(path);
  }
  absl::Status written = WriteFile(file.key, file.layers, layers);
  if (absl::IsResourceExhausted(written)) {
    MakeRoom(file.bytes());
    written = WriteFile(file.key, file.layers, layers);
  }
  MutexLock lock(&mu_);
  if (written.ok()) {
    // The kernel's own is of a coarser clock than that of use, and may lie before it.
    file.time = fs::file_time_type::clock::now();
    std::error_code ignored;
    fs::last_write_time(path, file.time, ignored);
    const int64_t more = room_bytes_ + file.bytes() / kRoomRegained;
    room_bytes_ = std::min(budget_bytes_, std::max(more, file.bytes()));
    AddLocked(std::move(file));
  }
  writing_.erase(path);
  written_.SignalAll();
  return written;
}

void KvBlockStore::MakeRoom(int64_t bytes) {
  MutexLock lock(&mu_);
  // One file is written before another is removed for it, so what is there is one too many.
  room_bytes_ = std::min(room_bytes_.load(), std::max(bytes_ - bytes, bytes));
  while (bytes_ > room_bytes_) RemoveLocked(files_.begin());
}

absl::Status KvBlockStore::WriteFile(const Key& key, const LayerRange& layers,
                                     absl::Span<const std::byte> bytes) {
  std::error_code ignored;  // Create says it
  fs::create_directory(JoinPath(directory_, key.format.ToString()), ignored);
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.first_layer = layers.first;
  header.num_layers = layers.num;
  header.layer_bytes = key.format.layer_bytes();
  const auto layer_bytes = static_cast<size_t>(header.layer_bytes);
  std::vector<LayerHash> hashes;
  for (size_t i = 0; i < static_cast<size_t>(layers.num); ++i) {
    hashes.push_back(HashKvLayer(bytes.subspan(i * layer_bytes, layer_bytes)));
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<OutputFile> file,
                           OutputFile::Create(PathOf(key, layers)));
  const auto write = [&file](const void* data, size_t size) {
    return file->Write({static_cast<const char*>(data), size});
  };
  CARAVAN_RETURN_IF_ERROR(write(&header, sizeof(header)));
  CARAVAN_RETURN_IF_ERROR(write(hashes.data(), hashes.size() * sizeof(LayerHash)));
  CARAVAN_RETURN_IF_ERROR(write(bytes.data(), bytes.size()));
  return file->Commit();
}

absl::Status KvBlockStore::Read(const KvFormat& format, const KvBlockPart& part, Show show) {
  int done = 0;
  while (done < part.layers.num) {
    const int layer = part.layers.first + done;
    std::optional<File> best;
    {
      MutexLock lock(&mu_);
      const auto named = by_key_.find({format, part.name});
      if (named != by_key_.end()) {
        for (const Files::iterator file : named->second) {
          if (file->layers.first > layer || file->layers.end() <= layer) continue;
          if (!best.has_value() || file->layers.end() > best->layers.end()) best = *file;
        }
      }
    }
    if (!best.has_value()) {
      return absl::NotFoundError(
          absl::StrCat("layer ", layer, " of KV block ", part.name.Hex(), " is not archived here"));
    }
    absl::Status shown;
    const absl::Status read = ReadFile(*best, part.layers, done, show, shown);
    CARAVAN_RETURN_IF_ERROR(shown);
    if (!read.ok()) Remove(*best);  // another may have the layer
  }
  return absl::OkStatus();
}

absl::Status KvBlockStore::ReadWhole(const KvFormat& format, const KvBlockPart& part,
                                     std::vector<std::byte>& layers) {
  const auto layer_bytes = static_cast<size_t>(format.layer_bytes());
  layers.resize(static_cast<size_t>(part.layers.num) * layer_bytes);
  return Read(format, part, [&](int layer, absl::Span<const std::byte> bytes) {
    std::memcpy(layers.data() + static_cast<size_t>(layer) * layer_bytes, bytes.data(),
                bytes.size());
    return absl::OkStatus();
  });
}

absl::Status KvBlockStore::ReadFile(const File& file, const LayerRange& layers, int& done,
                                    Show show, absl::Status& shown) const {
  const std::string path = PathOf(file.key, file.layers);
  const int64_t layer_bytes = file.key.format.layer_bytes();
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> in, ReadableFile::Open(path));
  Header header;
  CARAVAN_RETURN_IF_ERROR(
      in->Read(0, absl::MakeSpan(reinterpret_cast<std::byte*>(&header), sizeof(header))));
  std::vector<LayerHash> hashes(static_cast<size_t>(file.layers.num));
  CARAVAN_RETURN_IF_ERROR(in->Read(static_cast<int64_t>(sizeof(Header)),
                                   absl::MakeSpan(reinterpret_cast<std::byte*>(hashes.data()),
                                                  hashes.size() * sizeof(LayerHash))));
  const absl::Status wrong = absl::DataLossError(absl::StrCat(path, ": is not what was written"));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0 ||
      header.first_layer != file.layers.first || header.num_layers != file.layers.num ||
      header.layer_bytes != layer_bytes) {
    return wrong;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(layer_bytes));
  const int end = std::min(layers.end(), file.layers.end());
  while (layers.first + done < end) {
    const int index = layers.first + done - file.layers.first;
    CARAVAN_RETURN_IF_ERROR(
        in->Read(static_cast<int64_t>(sizeof(Header) + hashes.size() * sizeof(LayerHash)) +
                     index * layer_bytes,
                 absl::MakeSpan(bytes)));
    if (HashKvLayer(bytes) != hashes[static_cast<size_t>(index)]) return wrong;
    shown = show(done, bytes);
    if (!shown.ok()) return absl::OkStatus();
    ++done;
  }
  return absl::OkStatus();
}

std::vector<ListedKvPart> KvBlockStore::List(const KvFormat& format, const LayerRange& layers,
                                             size_t limit) const {
  const fs::file_time_type now = fs::file_time_type::clock::now();
  MutexLock lock(&mu_);
  std::vector<ListedKvPart> parts;
  for (auto file = files_.rbegin(); file != files_.rend() && parts.size() < limit; ++file) {
    const LayerRange common = Overlap(file->layers, layers);
    if (common.num == 0 || file->key.format != format) continue;
    parts.push_back({{file->key.name, common},
                     std::max(absl::FromChrono(now - file->time), absl::ZeroDuration())});
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

int64_t KvBlockStore::Prefer(const KvFormat& format, absl::Span<const LayerRange> ranges,
                             int64_t block_bytes) {
  MutexLock lock(&mu_);
  absl::flat_hash_map<KvBlockName, int64_t> bytes;
  Files preferred;
  for (auto file = files_.begin(); file != files_.end();) {
    const auto next = std::next(file);
    const bool wanted = file->key.format == format &&
                        std::any_of(ranges.begin(), ranges.end(), [&](const LayerRange& range) {
                          return Overlap(range, file->layers).num > 0;
                        });
    if (wanted) {
      bytes[file->key.name] += file->bytes();
      preferred.splice(preferred.end(), files_, file);
    }
    file = next;
  }
  files_.splice(files_.end(), preferred);
  int64_t excess = 0;
  for (const auto& [name, of_block] : bytes) excess += std::max<int64_t>(0, of_block - block_bytes);
  return excess;
}

}  // namespace caravan
