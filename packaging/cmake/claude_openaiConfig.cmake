# Makes the target claude_openai::claude_openai. It lies in PREFIX/share/cmake/claude_openai, the header in
# PREFIX/include; CMakeLists.txt says another place.
if(NOT claude_openai_include_dir)
  get_filename_component(claude_openai_include_dir "${CMAKE_CURRENT_LIST_DIR}/../../../include" ABSOLUTE)
endif()

include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(nlohmann_json)
find_package(httplib QUIET) # Debian's package has no such file, but one of pkg-config's
if(NOT TARGET httplib::httplib)
  find_dependency(PkgConfig)
  pkg_check_modules(cpp_httplib REQUIRED IMPORTED_TARGET GLOBAL cpp-httplib)
endif()
find_package(OpenSSL QUIET) # for TLS, and for sessions that are stored

if(NOT TARGET claude_openai::claude_openai)
  add_library(claude_openai::claude_openai INTERFACE IMPORTED GLOBAL)
  target_compile_features(claude_openai::claude_openai INTERFACE cxx_std_17)
  target_include_directories(claude_openai::claude_openai INTERFACE "${claude_openai_include_dir}")
  target_link_libraries(claude_openai::claude_openai INTERFACE
    nlohmann_json::nlohmann_json
    $<IF:$<TARGET_EXISTS:httplib::httplib>,httplib::httplib,PkgConfig::cpp_httplib>
    $<TARGET_NAME_IF_EXISTS:OpenSSL::SSL> $<TARGET_NAME_IF_EXISTS:OpenSSL::Crypto> Threads::Threads)
endif()
