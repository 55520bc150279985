#include "worker/compute_device.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

class Cpu : public ComputeDevice {
 public:
  explicit Cpu(const CpuOptions& options) : options_(options) {}

  std::string Name() const override { return "cpu"; }
  int64_t memory_budget_bytes() const override { return 0; }

  absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig&, int64_t) const override {
    return MakeCpuBackend(options_);
  }
  absl::StatusOr<std::unique_ptr<Backend>> MakeCpu() const override {
    return MakeCpuBackend(options_);
  }

 private:
  const CpuOptions options_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ComputeDevice>> OpenComputeDevice(const DeviceOptions& options) {
  // Tried once here, so that it is said before there is a stage.
  CARAVAN_RETURN_IF_ERROR(MakeCpuBackend(options.cpu).status());
  if (options.name == "cpu") {
    return std::make_unique<Cpu>(options.cpu);
  }
  absl::string_view rest = options.name;
  int ordinal = 0;
  if (!absl::ConsumePrefix(&rest, "cuda:") || !absl::SimpleAtoi(rest, &ordinal) || ordinal < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", options.name, "\" is no device: give cpu, cuda:0, cuda:1, ..."));
  }
  return OpenCard(ordinal, options);
}

}  // namespace caravan
