#include "worker/files/model_cache.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/byte_size.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "worker/files/partial_file.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

constexpr char kLockName[] = "lock";
constexpr size_t kFingerprintDigits = 16;

bool IsModelDirectory(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.size() == kFingerprintDigits &&
         std::all_of(name.begin(), name.end(), [](char c) { return absl::ascii_isxdigit(c); });
}

/// A packed file, or what there is of one.
struct KeptFile {
  std::string path;  // where it is or will be when it is whole
  fs::file_time_type used;
  int64_t bytes = 0;
};

/// What can be removed to make room: in directories of models, what ends as packed files do. Files
/// that others put there are left alone.
std::vector<KeptFile> FindKept(const std::string& directory) {
  std::vector<KeptFile> kept;
  std::error_code error;
  for (const fs::directory_entry& model : fs::directory_iterator(directory, error)) {
    if (!IsModelDirectory(model.path())) continue;
    std::error_code ignored;
    for (const fs::directory_entry& file : fs::directory_iterator(model.path(), ignored)) {
      const std::string path = file.path().string();
      const absl::string_view whole = absl::StripSuffix(path, kPartSuffix);
      if (!absl::EndsWith(whole, ".bin")) continue;
      std::error_code gone;
      KeptFile found = {std::string(whole), file.last_write_time(gone),
                        static_cast<int64_t>(file.file_size(gone))};
      if (!gone) kept.push_back(std::move(found));
    }
  }
  return kept;
}

void Remove(const std::string& path) {
  std::error_code ignored;
  for (const char* suffix : {"", kPartSuffix, kHaveSuffix}) fs::remove(path + suffix, ignored);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelCache>> ModelCache::Open(const Options& options) {
  CARAVAN_ASSIGN_OR_RETURN(DirectoryLock lock, DirectoryLock::Take(options.directory, kLockName));
  return std::unique_ptr<ModelCache>(new ModelCache(options, std::move(lock)));
}

std::string ModelCache::DirectoryOf(uint64_t fingerprint) const {
  return JoinPath(options_.directory, absl::StrCat(absl::Hex(fingerprint, absl::kZeroPad16)));
}

absl::Status ModelCache::MakeDirectory(uint64_t fingerprint) const {
  const std::string directory = DirectoryOf(fingerprint);
  std::error_code error;
  fs::create_directories(directory, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(directory, ": ", error.message()));
}

absl::StatusOr<std::unique_ptr<ModelCache::Lease>> ModelCache::Take(
    uint64_t fingerprint, const std::vector<PackedFile>& files) {
  const std::string directory = DirectoryOf(fingerprint);
  MutexLock lock(&mu_);
  std::vector<std::string> paths;
  int64_t wanted = 0;
  for (const PackedFile& file : files) {
    paths.push_back(JoinPath(directory, file.name));
    wanted += file.bytes;
  }
  const auto is_used = [&](const std::string& path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return in_use_.contains(path) || std::find(paths.begin(), paths.end(), path) != paths.end();
  };
  std::vector<KeptFile> kept = FindKept(options_.directory);
  int64_t used = wanted;     // what must stay or come
  int64_t missing = wanted;  // of it, what is to come
  for (const KeptFile& file : kept) {
    const bool is_wanted = std::find(paths.begin(), paths.end(), file.path) != paths.end();
    if (is_wanted) missing -= file.bytes;
    if (!is_wanted && in_use_.contains(file.path)) used += file.bytes;
  }
  std::erase_if(kept, [&](const KeptFile& file) { return is_used(file.path); });
  std::sort(kept.begin(), kept.end(),
            [](const KeptFile& a, const KeptFile& b) { return a.used < b.used; });
  int64_t spare = 0;  // what may go
  for (const KeptFile& file : kept) spare += file.bytes;

  const int64_t budget = options_.budget_bytes;
  if (budget > 0 && used > budget) {
    return absl::ResourceExhaustedError(absl::StrCat(
        options_.directory, ": the stage's files take ", FormatByteSize(wanted),
        used > wanted ? absl::StrCat(", with those of the present stage ", FormatByteSize(used))
                      : "",
        ", and --model-cache-size is ", FormatByteSize(budget)));
  }
  std::error_code error;
  const fs::space_info space = fs::space(options_.directory, error);
  // A file system that does not say shows it when the files come.
  const int64_t available =
      error ? INT64_MAX / 2
            : static_cast<int64_t>(std::min<uintmax_t>(space.available, INT64_MAX / 2));
  if (missing > available + spare) {
    return absl::ResourceExhaustedError(
        absl::StrCat(options_.directory, ": the disk has ", FormatByteSize(available + spare),
                     " for the stage's files, of which ", FormatByteSize(missing), " are to come"));
  }
  int64_t freed = 0;
  for (const KeptFile& file : kept) {
    const bool over_budget = budget > 0 && used + spare - freed > budget;
    if (!over_budget && missing <= available + freed) break;
    Remove(file.path);
    freed += file.bytes;
    LogInfo("cached_file_removed", {{"file", file.path}, {"bytes", file.bytes}});
  }
  for (const std::string& path : paths) {
    ++in_use_[path];
    fs::last_write_time(path, fs::file_time_type::clock::now(), error);  // if it is there
  }
  return std::unique_ptr<Lease>(new Lease(this, std::move(paths)));
}

void ModelCache::Release(const std::vector<std::string>& paths) {
  MutexLock lock(&mu_);
  for (const std::string& path : paths) {
    if (--in_use_[path] == 0) in_use_.erase(path);
  }
}

void ModelCache::Doubt(const Lease& lease) const {
  for (const std::string& path : lease.paths_) {
    const absl::Status doubted = DoubtFile(path);
    if (!doubted.ok()) LogWarning("cached_file_not_checked", {{"why", doubted.message()}});
  }
}

std::vector<ShelvedFile> ModelCache::List(uint64_t fingerprint) const {
  std::vector<ShelvedFile> files;
  std::error_code error;
  for (const fs::directory_entry& file : fs::directory_iterator(DirectoryOf(fingerprint), error)) {
    const std::string name = file.path().filename().string();
    if (name != kPackManifestName && !absl::EndsWith(name, ".bin")) continue;
    std::error_code gone;
    const auto bytes = static_cast<int64_t>(file.file_size(gone));
    if (!gone) files.push_back({name, file.path().string(), bytes});
  }
  return files;
}

}  // namespace caravan
