#include "model/model_identity.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/open_file.h"
#include "base/status_macros.h"
#include "model/gguf/gguf_set.h"
#include "model/pack/pack_manifest.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

bool IsOfAModel(const fs::path& path) {
  const fs::path extension = path.extension();
  return extension == ".safetensors" || extension == ".json" || extension == ".gguf";
}

}  // namespace

absl::StatusOr<std::string> ModelIdentity(const StoredModel& model, const std::string& path) {
  std::string identity = absl::StrCat(model.fingerprint());
  if (FileExists(JoinPath(path, kPackManifestName))) return identity;
  std::vector<std::string> files;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    for (fs::directory_iterator each(path, error); !error && each != fs::end(each);
         each.increment(error)) {
      if (IsOfAModel(each->path())) files.push_back(each->path().string());
    }
    if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
    std::sort(files.begin(), files.end());
  } else {
    files = GgufSetPaths(path);
  }
  for (const std::string& file : files) {
    struct stat info = {};
    if (::stat(file.c_str(), &info) != 0) return ErrnoStatus(errno, file);
    absl::StrAppend(&identity, "\n", fs::path(file).filename().string(), " ", info.st_size, " ",
                    info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
  }
  return identity;
}

}  // namespace caravan
