#include "worker/nccl/nccl_version.h"

#include "absl/strings/str_cat.h"

namespace caravan {

std::string NcclVersionText(int version_code) {
  return absl::StrCat(version_code / 10000, ".", version_code / 100 % 100, ".", version_code % 100);
}

}  // namespace caravan
