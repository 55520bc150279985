# cmake -DOUTPUT=file.cc -DFILES="a;b" -P EmbedFiles.cmake
# Writes the files into a source file as string literals: {name, contents} each, for
# coordinator/dashboard_files.h.
set(entries "")
foreach(file IN LISTS FILES)
  cmake_path(GET file FILENAME name)
  file(READ "${file}" text)
  string(FIND "${text}" ")embedded\"" end)
  if(NOT end EQUAL -1)
    message(FATAL_ERROR "${file}: holds what ends an embedded file")
  endif()
  string(APPEND entries "    {\"${name}\", R\"embedded(${text})embedded\"},\n")
endforeach()
file(WRITE "${OUTPUT}" "// Made by cmake/EmbedFiles.cmake.
#include \"coordinator/dashboard_files.h\"

namespace caravan {

const std::vector<DashboardFile>& DashboardFiles() {
  static const auto& files = *new std::vector<DashboardFile>{
${entries}  };
  return files;
}

}  // namespace caravan
")
