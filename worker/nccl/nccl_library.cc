#include "worker/nccl/nccl_library.h"

#include <dlfcn.h>

#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "worker/nccl/nccl_functions.h"
#include "worker/nccl/nccl_version.h"

namespace caravan {
namespace {

std::string LinkerWords() {
  const char* const words = ::dlerror();
  return words == nullptr ? "the dynamic linker says no more" : words;
}

/// Closes the library, unless it is kept.
class Opened {
 public:
  explicit Opened(const std::string& path)
      : path_(path), handle_(::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {}
  ~Opened() {
    if (handle_ != nullptr) ::dlclose(handle_);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  bool ok() const { return handle_ != nullptr; }
  void Keep() { handle_ = nullptr; }

  template <typename Function>
  absl::Status Find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(::dlsym(handle_, name));
    if (function != nullptr) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " is not an NCCL that can be used: it has no ", name));
  }

 private:
  const std::string path_;
  void* handle_;
};

absl::Status CheckVersion(const std::string& path, int version) {
  if (version < kOldestNcclVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is NCCL ", NcclVersionText(version),
                                                      "; ", NcclVersionText(kOldestNcclVersion),
                                                      " is the oldest that will do"));
  }
  if (version / 10000 != NCCL_MAJOR) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " is NCCL ", NcclVersionText(version), "; this build is made for version ",
        NCCL_MAJOR, " (", NcclVersionText(NCCL_VERSION_CODE), ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclLibrary>> NcclLibrary::Load(const std::string& path) {
  Opened library(path);
  if (!library.ok()) return absl::UnavailableError(absl::StrCat("no NCCL: ", LinkerWords()));

  auto nccl = std::make_unique<NcclFunctions>();
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGetVersion", nccl->get_version));
  int version = 0;
  if (nccl->get_version(&version) != ncclSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(path, " does not say its version"));
  }
  // Before the other names: an old library lacks some, which says less.
  CARAVAN_RETURN_IF_ERROR(CheckVersion(path, version));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGetUniqueId", nccl->get_unique_id));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclCommInitRankConfig", nccl->comm_init_rank_config));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclCommGetAsyncError", nccl->comm_get_async_error));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclCommFinalize", nccl->comm_finalize));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclCommDestroy", nccl->comm_destroy));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclCommAbort", nccl->comm_abort));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGroupStart", nccl->group_start));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGroupEnd", nccl->group_end));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclSend", nccl->send));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclRecv", nccl->recv));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGetErrorString", nccl->get_error_string));
  CARAVAN_RETURN_IF_ERROR(library.Find("ncclGetLastError", nccl->get_last_error));
  library.Keep();
  return absl::WrapUnique(new NcclLibrary(std::move(nccl), version));
}

NcclLibrary::NcclLibrary(std::unique_ptr<const NcclFunctions> functions, int version)
    : functions_(std::move(functions)), version_(version) {}

NcclLibrary::~NcclLibrary() = default;

absl::Status NcclStatus(const NcclFunctions& nccl, ncclResult_t result, absl::string_view call) {
  absl::StatusCode code = absl::StatusCode::kInternal;
  switch (result) {
    case ncclSuccess:
    case ncclInProgress:
      return absl::OkStatus();
    case ncclSystemError:
    case ncclRemoteError:
      code = absl::StatusCode::kUnavailable;
      break;
    case ncclInvalidUsage:
      code = absl::StatusCode::kFailedPrecondition;
      break;
    default:
      break;
  }
  std::string message = absl::StrCat(call, ": ", nccl.get_error_string(result));
  // NCCL keeps its latest warning for the whole process, whatever communicator is named.
  const absl::string_view warning =
      absl::StripAsciiWhitespace(absl::NullSafeStringView(nccl.get_last_error(nullptr)));
  if (!warning.empty()) absl::StrAppend(&message, " (", warning, ")");
  return absl::Status(code, message);
}

}  // namespace caravan
