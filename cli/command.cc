#include "cli/command.h"

#include <cstdio>
#include <map>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/byte_size.h"
#include "kernels/kv_rows.h"

namespace caravan {

int ReportStatus(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "caravan: %s\n", std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return kExitUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailed;
  }
}

void AddConfigOption(CLI::App& command) {
  // Not CLI11's set_config: only the top command obeys it, a subcommand would ignore the file.
  const auto read = [&command](const std::string& path) {
    CLI::ConfigTOML format;
    for (const CLI::ConfigItem& item : format.from_file(path)) {
      CLI::Option* const option =
          item.parents.empty() ? command.get_option_no_throw("--" + item.name) : nullptr;
      if (option == nullptr || item.name == "config") {
        throw CLI::ValidationError("--config",
                                   absl::StrCat(path, ": there is no option ", item.fullname()));
      }
      if (option->count() > 0) continue;  // the command line wins
      if (option->get_expected_min() == 0) {
        option->add_result(option->get_flag_value(item.name, format.to_flag(item)));
      } else {
        option->add_result(item.inputs);
      }
      option->run_callback();
    }
  };
  command
      .add_option_function<std::string>("--config", read,
                                        "Read options from FILE: lines of option = value (TOML)")
      ->type_name("FILE");
}

void AddSpeculateOption(CLI::App& command, bool& speculate) {
  command
      .add_option_function<std::string>(
          "--speculate", [&speculate](const std::string& how) { speculate = how == "mtp"; },
          "mtp: the model's layer of multi-token prediction drafts tokens, as long as that pays; "
          "replies stay the same")
      ->check(CLI::IsMember({"off", "mtp"}))
      ->type_name("off|mtp")
      ->default_str(speculate ? "mtp" : "off");
}

void AddShareFilesOption(CLI::App& command, double& percent) {
  command
      .add_option(
          "--share-files", percent,
          "Share of its time, in percent, that this process gives to passing weights of the "
          "model, in files or by tensor, while steps run, so that these are not slowed by "
          "more; 100: all that others ask for")
      ->type_name("PERCENT")
      ->check(CLI::Range(0.1, 100.0))
      ->capture_default_str();
}

void AddKvOption(CLI::App& command, DType& dtype) {
  std::map<std::string, DType> formats;
  for (const DType each : kKvDTypes) formats[KvOptionName(each)] = each;
  command
      .add_option_function<std::string>(
          "--kv", [&dtype, formats](const std::string& name) { dtype = formats.at(name); },
          "Format of the KV cache: f16 takes half the memory of f32, q8_0 little more than a "
          "quarter, each with rounding of its own")
      ->check(CLI::IsMember(formats))
      ->type_name("f32|f16|q8_0")
      ->default_str(KvOptionName(dtype));
}

CLI::Option* AddByteSizeOption(CLI::App& command, const std::string& name, int64_t& bytes,
                               const std::string& help) {
  return command
      .add_option_function<std::string>(
          name,
          [&bytes, name](const std::string& text) {
            const absl::StatusOr<int64_t> parsed = ParseByteSize(text);
            if (!parsed.ok() || *parsed == 0) {
              throw CLI::ValidationError(name, parsed.ok()
                                                   ? "must be more than 0"
                                                   : std::string(parsed.status().message()));
            }
            bytes = *parsed;
          },
          help)
      ->type_name("SIZE");
}

void AddIsaOption(CLI::App& command, CpuIsa& isa) {
  std::map<std::string, CpuIsa> names;
  for (const CpuIsa each : {CpuIsa::kAuto, CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    names[IsaOptionName(each)] = each;
  }
  command
      .add_option_function<std::string>(
          "--isa",
          [&isa, names](const std::string& name) {
            isa = names.at(name);
            const absl::Status has = RowOpsFor(isa).status();
            if (!has.ok()) throw CLI::ValidationError("--isa", std::string(has.message()));
          },
          "Instruction set of the kernels, where not the best that the CPU has; the last digits of "
          "results differ between them")
      ->check(CLI::IsMember(names))
      ->type_name("auto|portable|avx2|avx512")
      ->default_str(IsaOptionName(isa));
}

std::string IsaOptionName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAuto:
      return "auto";
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  return "";
}

std::string KvOptionName(DType dtype) { return absl::AsciiStrToLower(DTypeName(dtype)); }

}  // namespace caravan
