// The order of the folders (docs/architecture.md), held: an include that climbs fails here, and so
// does one that carries gRPC or CUDA to where they are not known.

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// What each folder may include, besides itself.
const std::map<std::string, std::set<std::string>>& AllowedFolders() {
  static const auto& allowed = *new std::map<std::string, std::set<std::string>>{
      {"base", {}},
      {"kernels", {"base"}},
      {"model", {"base", "caravan", "kernels"}},
      {"cluster", {"base", "caravan", "kernels", "model"}},
      {"worker", {"base", "caravan", "kernels", "model", "cluster"}},
      {"coordinator", {"base", "caravan", "kernels", "model", "cluster"}},
      {"cli", {"base", "caravan", "kernels", "model", "cluster", "worker", "coordinator"}},
  };
  return allowed;
}

const std::set<std::string> kKnowGrpc = {"cluster", "worker", "coordinator", "cli"};
// Folders of ours that nothing in the order may include; "caravan" holds what protoc makes.
const std::set<std::string> kOtherFolders = {"caravan", "bench", "tests", "proto"};

bool StartsWith(const std::string& text, const std::string& prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool EndsWith(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

/// What an #include line names, without its quotes or brackets; nullopt: another line.
std::optional<std::string> IncludedPath(const std::string& line) {
  size_t at = line.find_first_not_of(" \t");
  if (at == std::string::npos || line[at] != '#') return std::nullopt;
  at = line.find_first_not_of(" \t", at + 1);
  if (at == std::string::npos || line.compare(at, 7, "include") != 0) return std::nullopt;
  const size_t open = line.find_first_of("\"<", at);
  if (open == std::string::npos) return std::nullopt;
  const size_t close = line.find(line[open] == '"' ? '"' : '>', open + 1);
  if (close == std::string::npos) return std::nullopt;
  return line.substr(open + 1, close - open - 1);
}

/// What is wrong with a line of `file` (a path from the root); empty: nothing.
std::string Complaint(const std::string& file, const std::string& line) {
  const std::optional<std::string> path = IncludedPath(line);
  if (!path.has_value()) return "";
  const std::string folder = file.substr(0, file.find('/'));
  const bool grpc =
      StartsWith(*path, "grpcpp/") || StartsWith(*path, "grpc/") || EndsWith(*path, ".grpc.pb.h");
  if (grpc && kKnowGrpc.count(folder) == 0) return folder + " must not know gRPC: " + *path;
  const bool cuda = StartsWith(*path, "cuda") || StartsWith(*path, "cublas") ||
                    StartsWith(*path, "nccl") || StartsWith(*path, "mma.h");
  // What a card's memory is planned with is arithmetic, for machines without CUDA too.
  const bool our_cuda =
      StartsWith(*path, "kernels/cuda/") && *path != "kernels/cuda/cuda_scratch.h";
  if ((cuda || our_cuda) && folder != "worker" && !StartsWith(file, "kernels/cuda/")) {
    return folder + " must not know CUDA: " + *path;
  }
  // So that what includes our headers needs no CUDA headers, and g++ compiles it.
  if (cuda && StartsWith(file, "kernels/cuda/") && EndsWith(file, ".h")) {
    return "a .h of kernels/cuda must not know CUDA's headers: " + *path;
  }
  if (EndsWith(*path, ".cuh") && !EndsWith(file, ".cu") && !EndsWith(file, ".cuh")) {
    return "only .cu and .cuh may include device code: " + *path;
  }
  const std::string included = path->substr(0, path->find('/'));
  const bool ours = path->find('/') != std::string::npos &&
                    (AllowedFolders().count(included) > 0 || kOtherFolders.count(included) > 0);
  if (!ours || included == folder || AllowedFolders().at(folder).count(included) > 0) return "";
  return folder + " must not include " + included + ": " + *path;
}

bool IsSource(const std::filesystem::path& path) {
  static const std::set<std::string> kExtensions = {".cc", ".h", ".cu", ".cuh"};
  return kExtensions.count(path.extension().string()) > 0;
}

TEST(LayeringTest, NoIncludeClimbs) {
  const std::filesystem::path root = CARAVAN_SOURCE_DIR;
  for (const auto& [folder, allowed] : AllowedFolders()) {
    int sources = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      if (!IsSource(entry.path())) continue;
      ++sources;
      const std::string file = std::filesystem::relative(entry.path(), root).generic_string();
      std::ifstream in(entry.path());
      ASSERT_TRUE(in.is_open()) << file;
      std::string line;
      for (int number = 1; std::getline(in, line); ++number) {
        EXPECT_THAT(Complaint(file, line), IsEmpty()) << file << ":" << number;
      }
    }
    EXPECT_GT(sources, 0) << folder;
  }
}

TEST(LayeringTest, EveryFolderOfSourcesHasItsPlace) {
  // A new folder must be put into the order above, or it would escape the test.
  const std::set<std::string> elsewhere = {"bench", "build", "tests"};
  for (const auto& folder : std::filesystem::directory_iterator(CARAVAN_SOURCE_DIR)) {
    const std::string name = folder.path().filename().string();
    if (!folder.is_directory() || name[0] == '.' || elsewhere.count(name) > 0) continue;
    if (AllowedFolders().count(name) > 0) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      EXPECT_FALSE(IsSource(entry.path())) << entry.path();
    }
  }
}

TEST(LayeringTest, CheckerSeesAnIncludeThatClimbs) {
  EXPECT_THAT(Complaint("base/file.cc", "#include \"model/checkpoint.h\""),
              HasSubstr("base must not include model"));
  EXPECT_THAT(Complaint("worker/stage.h", "#include \"coordinator/job.h\""),
              HasSubstr("worker must not include coordinator"));
  EXPECT_THAT(Complaint("coordinator/job.cc", "  #  include <worker/stage.h>"),
              HasSubstr("coordinator must not include worker"));
  EXPECT_THAT(Complaint("kernels/cpu/router.cc", "#include \"caravan/v1/jobs.pb.h\""),
              HasSubstr("kernels must not include caravan"));
  EXPECT_THAT(Complaint("cli/main.cc", "#include \"tests/support/temp_dir.h\""),
              HasSubstr("cli must not include tests"));
}

TEST(LayeringTest, CheckerSeesGrpcAndCudaOutOfPlace) {
  EXPECT_THAT(Complaint("model/sampler.cc", "#include <grpcpp/grpcpp.h>"), HasSubstr("gRPC"));
  EXPECT_THAT(Complaint("base/log.cc", "#include \"grpc/grpc.h\""), HasSubstr("gRPC"));
  EXPECT_THAT(Complaint("model/a.h", "#include \"caravan/v1/jobs.grpc.pb.h\""), HasSubstr("gRPC"));
  EXPECT_THAT(Complaint("model/a.cc", "#include <cuda_runtime.h>"), HasSubstr("CUDA"));
  EXPECT_THAT(Complaint("kernels/cpu/a.cc", "#include <cublas_v2.h>"), HasSubstr("CUDA"));
  EXPECT_THAT(Complaint("cluster/a.cc", "#include \"kernels/cuda/a.h\""), HasSubstr("CUDA"));
  EXPECT_THAT(Complaint("kernels/cuda/a.h", "#include <cuda_fp16.h>"), HasSubstr("headers"));
  EXPECT_THAT(Complaint("kernels/cuda/a.cc", "#include \"kernels/cuda/a.cuh\""),
              HasSubstr("device code"));
}

TEST(LayeringTest, CheckerLetsTheRestPass) {
  EXPECT_THAT(Complaint("model/a.cc", "#include \"kernels/backend.h\""), IsEmpty());
  EXPECT_THAT(Complaint("model/a.cc", "#include \"caravan/v1/jobs.pb.h\""), IsEmpty());
  EXPECT_THAT(Complaint("model/a.cc", "#include \"absl/status/status.h\""), IsEmpty());
  EXPECT_THAT(Complaint("model/a.cc", "#include <vector>"), IsEmpty());
  EXPECT_THAT(Complaint("model/a.cc", "// #include \"worker/stage.h\""), IsEmpty());
  EXPECT_THAT(Complaint("cluster/a.cc", "#include <grpcpp/grpcpp.h>"), IsEmpty());
  EXPECT_THAT(Complaint("cli/a.cc", "#include \"worker/stage.h\""), IsEmpty());
  EXPECT_THAT(Complaint("kernels/cuda/a.cu", "#include <cuda_fp8.h>"), IsEmpty());
  EXPECT_THAT(Complaint("kernels/cuda/a.cu", "#include \"kernels/cuda/a.cuh\""), IsEmpty());
  EXPECT_THAT(Complaint("kernels/cuda/a.cc", "#include <cuda_runtime_api.h>"), IsEmpty());
  EXPECT_THAT(Complaint("worker/a.cc", "#include <cuda_runtime.h>"), IsEmpty());
}

}  // namespace
}  // namespace caravan
